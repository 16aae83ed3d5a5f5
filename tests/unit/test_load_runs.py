"""rowsft.load_runs: the runs of a store as a DataFrame, and the examples of docs/records.md."""

import re
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
from report_factory import classification, config, finish, outcomes

import rowsft
from rowsft.record import Error
from rowsft.report.flat import run_rows
from rowsft.store import Store

RECORDS = Path(__file__).parents[2] / "docs" / "records.md"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("loaded") / "runs"
    for seed in (1, 2):
        for method, right in (("lora", 70 + seed), ("row_sft", 75), ("none", 50)):
            finish(Store(root), outcomes(right), method=method, seed=seed, task="sentiment")
    finish(Store(root), classification("lora", 3), seed=3, task="sentiment", experiment="other")
    with Store(root).open(config(method="dora", task="sentiment")) as run:
        run.begin().finish("oom", error=Error(type="MemoryError", message="full"))
    return root


def test_one_row_a_run_with_the_values_of_its_record(root):
    frame = rowsft.load_runs(root)
    records = {record.id: record for record in Store(root).runs()}
    assert list(frame["id"]) == list(records) and len(frame) == 8
    for row in frame.to_dict("records"):
        record = records[row["id"]]
        assert row["state"] == record.state and row["config.seed"] == record.config["seed"]
        measured = record.result.memory.train.peak_allocated_bytes if record.result else None
        peak = row["memory.train.peak_allocated_bytes"]
        assert pandas.isna(peak) if measured is None else peak == measured
        if record.result:
            assert row["metrics.test.accuracy"] == record.result.metrics["test"]["accuracy"]
    assert set(frame.columns) == {name for row in run_rows(list(records.values())) for name in row}


def test_columns_have_the_types_of_what_they_hold(root):
    frame = rowsft.load_runs(root)
    assert frame["state"].dtype == "category" and list(frame.loc[frame["state"] > "done", "state"]) == ["oom"]
    assert frame["metrics.test.accuracy"].dtype == "float64" and frame["config.seed"].dtype == "int64"
    assert frame["started_at"].dt.tz is not None and frame["config.method.name"].dtype == "string"
    assert frame["environment.git_dirty"].dtype == "boolean" and frame["seconds.train"].mean() > 0


def test_an_experiment_and_an_empty_store(root, tmp_path):
    assert list(rowsft.load_runs(root, experiment="other")["config.seed"]) == [3]
    assert rowsft.load_runs(tmp_path / "none").empty and "id" in rowsft.load_runs(root, experiment="unknown")


def test_the_examples_of_the_page_run(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    names: dict = {}
    for block in re.findall(r"^```python\n(.*?)^```$", RECORDS.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        exec(block, names)
    table, minus_lora = names["table"], names["minus_lora"]
    assert table.loc["lora", "seeds"] == 2 and table.loc["lora", "accuracy"] == pytest.approx(0.715)
    assert table.loc["row_sft", "peak_mib"] == 402.5
    assert list(minus_lora["row_sft"]) == pytest.approx([0.04, 0.03])
    assert names["resolved"].iloc[0]["r"] == 8 and names["predictions"].is_file()


def test_torch_is_never_imported(root):
    code = f"import sys, rowsft; rowsft.load_runs({str(root)!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
