"""The dashboard: every panel reads what a tracked run writes, and it is made without an account as a file."""

import json
import re
import sys

import pytest
from tracked_run import record_run
from wandb_files import history, read_records, rowsft, run_python, summary
from wandb_server import KEY, Server

from rowsft.errors import UserError
from rowsft.tracking import names, workspace

NOT_HERE = "needs wandb-workspaces: pip install 'rowsft[dashboards]'"


def built(**arguments):
    pytest.importorskip("wandb_workspaces", reason=NOT_HERE)
    settings = {"project": "rows", "entity": "lab", "experiment": "small"} | arguments
    return workspace.specification(workspace.workspace(**settings))


def panels(specification):
    sections = specification["workspace"]["spec"]["section"]["panelBankConfig"]["sections"]
    return {section["name"]: section["panels"] for section in sections}


def read_by(panel):
    """The names of metrics and tables that a panel reads, without what says where they stand."""
    config = panel["config"]
    read = [config.get(axis) for axis in ("xAxis", "yAxis")] + config.get("metrics", [])
    tables = re.findall(r'"tableKey", "value": "([^"]+)"', json.dumps(config))
    tables += re.findall(r'"key": {"nodeType": "const", "type": "string", "val": "([^"]+)"', json.dumps(config))
    return {re.sub(r"^summary(_metrics)?[:.]", "", name) for name in read if name} - {"_step"} | set(tables)


def test_every_panel_reads_what_a_tracked_run_writes(tmp_path):
    specification = built()
    record = record_run(tmp_path / "runs")
    code = f"""
from rowsft.store import Store
from rowsft.tracking.replay import replay
replay(Store("runs").get("{record.id}"), "logs")
"""
    assert run_python(code, tmp_path).returncode == 0
    records = read_records(tmp_path / "logs")
    written = {name.removesuffix("/path") for row in history(records) for name in row} | set(summary(records))
    for name, section in panels(specification).items():
        for panel in section:
            assert read_by(panel), (name, panel)
            # Curves of the validation split are shown once a run records some; the comparison is a run of its own.
            assert read_by(panel) <= written | {names.VALIDATION_LOSS, names.COMPARISON}, (name, panel)
    (runs,) = specification["workspace"]["spec"]["section"]["runSets"]
    pinned = [column for column in runs["runFeed"]["columnPinned"] if column != "run:displayName"]
    assert pinned and {column.removeprefix("summary:") for column in pinned} <= written


def test_the_dashboard_shows_what_was_asked_for():
    shown = panels(built())
    assert {"Result against memory", "Budget", "Time", "Memory by part", "Selection", "Comparison"} <= set(shown)
    first, second = map(read_by, shown["Result against memory"])
    assert first == {names.TRAIN_PEAK, names.PRIMARY} and second == {names.TRAIN_PEAK, names.HELD_OUT_LOSS}
    step = shown["Memory by part"][0]["config"]
    assert step["plotType"] == "stacked-area" and step["xAxis"] == names.MEMORY_EVENT


def test_the_heat_map_draws_columns_of_the_selection():
    (chart,) = [panel for panel in panels(built())["Selection"] if panel["viewType"] == "Vega2"]
    assert chart["config"]["panelDefId"] == f"lab/{workspace.HEAT_MAP}"
    drawn = set(re.findall(r"\$\{field:(\w+)\}", json.dumps(workspace.HEAT_MAP_SPEC)))
    fields = chart["config"]["fieldSettings"]
    assert set(fields) == drawn and set(fields.values()) <= set(names.SELECTION_COLUMNS)


def test_one_experiment_is_a_filter_on_the_group():
    text = json.dumps(built()["workspace"]["spec"]["section"]["runSets"])
    assert "small" in text and "small" not in json.dumps(built(experiment=None)["workspace"]["spec"])


def test_the_same_dashboard_is_the_same_file_and_wandb_reads_it():
    assert built() == built()
    from wandb_workspaces.workspaces.internal import View

    assert View.model_validate(built()["workspace"]).project == "rows"


def test_without_an_account_it_is_a_file(tmp_path):
    wanted = built(entity="", project="rowsft")
    done = rowsft(tmp_path, "track", "workspace", "--experiment", "small")
    assert (done.returncode, done.stderr) == (0, "")
    assert "wandb login" in done.stdout
    assert json.loads((tmp_path / "reports" / "workspace.json").read_text()) == wanted


def test_with_an_account_it_is_made_on_the_server(tmp_path):
    wanted = built(project="rows")
    with Server("answers") as server:
        done = rowsft(tmp_path, "track", "workspace", "--project", "rows", "--experiment", "small", **server.variables)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"workspace: http://127\.0\.0\.1:\d+/lab/rows\?nw=\w+\n", done.stdout) and done.stderr == ""
    (view,), (chart,) = server.views, server.charts
    assert workspace._without_ids(json.loads(view["spec"])) == wanted["workspace"]["spec"]
    assert (chart["entity"], json.loads(chart["spec"])) == ("lab", workspace.HEAT_MAP_SPEC)


@pytest.mark.parametrize("how", ["hangs", "refuses", "401"])
def test_a_server_that_does_not_take_it_is_said_in_one_line(tmp_path, how):
    built()
    with Server(how) as server:
        done = rowsft(tmp_path, "track", "workspace", "--wait", "3", **server.variables)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("rowsft: error: W&B: the workspace cannot be made (") and KEY not in done.stderr
    assert done.stderr.count("\n") == 1 and "--out FILE" in done.stderr


def test_without_the_library_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    with pytest.raises(UserError, match=r"pip install 'rowsft\[dashboards\]'$"):
        workspace.workspace("rows", "lab")
