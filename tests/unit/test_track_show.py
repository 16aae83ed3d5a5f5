"""What an offline W&B run shows of a recorded attempt, live and written again from the record."""

import json

import pytest
from tracked_run import POINTS, record_run
from wandb_files import history, items, read_records, run_python, summary

from rowsft.errors import UserError
from rowsft.tracking import names
from rowsft.tracking.offline import offline_runs
from rowsft.tracking.replay import replay

LIVE = """
from rowsft.store import Store
from rowsft.tracking.content import curve, final_numbers
from rowsft.tracking.tracker import WandbTracker, tracking
(record,) = Store("runs").runs()
attempt = record.result
with tracking(WandbTracker(dir="logs", SETTINGS), f"{record.id}-1", record.config, "small") as tracker:
    for step, values in curve(attempt, record.folder)SEEN:
        tracker.log(step, values)
    tracker.show(attempt, record.folder)
    tracker.summary(final_numbers(attempt))
"""
REPLAY = """
from rowsft.store import Store
from rowsft.tracking.replay import replay
(record,) = Store("runs").runs()
print(replay(record, "logs"SETTINGS))
"""


def live(folder, settings="", seen=""):
    done = run_python(LIVE.replace("SETTINGS", settings).replace("SEEN", seen), folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def again(folder, settings=""):
    done = run_python(REPLAY.replace("SETTINGS", settings), folder)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.strip()


def table(folder, name):
    """(columns, rows) of a table of the run, from the file that its summary names."""
    (run,) = offline_runs(folder / "wandb")
    content = json.loads((run.path / "files" / summary(records_of(folder))[f"{name}/path"]).read_text())
    return content["columns"], content["data"]


def records_of(folder):
    (run,) = offline_runs(folder / "wandb")
    return read_records(run.path)


def losses(folder):
    return [(row["_step"], row["train/loss"]) for row in history(records_of(folder)) if "train/loss" in row]


def adapters(folder):
    """Tables are artifacts too, of another type."""
    artifacts = [entry.request.log_artifact.artifact for entry in records_of(folder) if entry.HasField("request")]
    artifacts += [entry.artifact for entry in records_of(folder) if entry.HasField("artifact")]
    return [artifact for artifact in artifacts if artifact.type == "adapter"]


CURVE = [(step, pytest.approx(loss)) for step, loss, _ in POINTS]


def test_a_live_run_shows_curves_memory_selection_and_final_numbers(tmp_path):
    record_run(tmp_path / "runs")
    live(tmp_path)
    assert losses(tmp_path / "logs") == CURVE
    rows = [row for row in history(records_of(tmp_path / "logs")) if names.MEMORY_EVENT in row]
    assert [row[names.MEMORY_EVENT] for row in rows] == [0, 7]
    assert rows[1][names.memory_step("gradients")] == 2 and not any("train/loss" in row for row in rows)
    axes = [entry.metric for entry in records_of(tmp_path / "logs") if entry.HasField("metric")]
    assert any(m.glob_name == "memory_step/*" and m.step_metric == names.MEMORY_EVENT for m in axes)
    columns, cells = table(tmp_path / "logs", names.SELECTION)
    assert tuple(columns) == names.SELECTION_COLUMNS
    assert cells[0] == [0, "attention.self.query", 3, 0, "encoder.layer.0.attention.self.query"]
    columns, cells = table(tmp_path / "logs", names.LEDGER)
    assert tuple(columns) == names.LEDGER_COLUMNS and ["backward", "unattributed", 0.5] in cells
    numbers = summary(records_of(tmp_path / "logs"))
    assert numbers[names.PRIMARY] == 0.75 and numbers["state"] == "done"
    assert adapters(tmp_path / "logs") == []


def test_a_resumed_attempt_has_its_whole_history_in_one_folder(tmp_path):
    """The first process logged step 1 and died; the second goes on at step 2."""
    record_run(tmp_path / "runs")
    first = LIVE.replace("SETTINGS", "").replace("SEEN", "[:1]").replace("tracker.show", "import os; os._exit(9)  #")
    assert run_python(first, tmp_path).returncode == 9
    live(tmp_path, seen="[1:]")
    assert losses(tmp_path / "logs") == CURVE
    assert summary(records_of(tmp_path / "logs"))[names.HELD_OUT_LOSS] == 0.6
    ids = [path.name.rpartition("-")[0][-12:] for path in (tmp_path / "logs" / "wandb").glob("*offline-run-*")]
    assert len(ids) == 3 and len(set(ids)) == 1, "the two parts are kept beside it, under names that are not uploaded"


def test_a_run_of_the_store_is_written_again_as_it_was_live(tmp_path):
    tracker = {"_target_": "rowsft.tracking.tracker.WandbTracker", "project": "rows", "entity": "lab", "tags": ["a"]}
    record = record_run(tmp_path / "runs", tracker=tracker)
    live(tmp_path, 'project="rows", entity="lab", tags=["a"]')
    before = records_of(tmp_path / "logs")
    assert again(tmp_path) == f"{record.id}-1"
    after = records_of(tmp_path / "logs")

    def told(records):
        (run,) = [entry.run for entry in records if entry.HasField("run")]
        fields = {name: getattr(run, name) for name in ("run_id", "project", "entity", "run_group", "job_type")}
        rows = [{k: v for k, v in row.items() if k not in ("_timestamp", "_runtime")} for row in history(records)]
        numbers = {k: v for k, v in summary(records).items() if isinstance(v, int | float) and k[0] != "_"}
        config = {k: v for k, v in items(run.config.update).items() if k != "_wandb"}
        return fields, list(run.tags), config, [row for row in rows if "selection/size" not in row], numbers

    assert told(before) == told(after)
    assert told(after)[0]["project"] == "rows" and len(told(after)[3]) == 5


def test_an_attempt_that_failed_is_written_with_its_state_and_curve(tmp_path):
    record_run(tmp_path / "runs", state="failed")
    again(tmp_path, ', project="other"')
    assert losses(tmp_path / "logs") == CURVE and summary(records_of(tmp_path / "logs"))["state"] == "failed"
    assert [entry.exit.exit_code for entry in records_of(tmp_path / "logs") if entry.HasField("exit")] == [1]


def test_the_adapter_is_an_artifact_where_it_is_asked_for(tmp_path):
    record = record_run(tmp_path / "runs")
    again(tmp_path, ", log_adapter=True")
    (artifact,) = adapters(tmp_path / "logs")
    assert artifact.name == f"adapter-{record.id}-1"
    files = {entry.path: entry.local_path for entry in artifact.manifest.contents}
    assert set(files) == {"adapter_model.safetensors", "adapter_config.json"}
    assert json.loads(artifact.metadata) == {"sha256": record.result.files["adapter"].sha256}


@pytest.mark.parametrize("text", ["step,loss\none,two\n", "loss\n1\n", "step,loss\n1,2,3\n", "step\n\x00\n", "\udcff"])
def test_a_damaged_curve_is_said_in_one_line(tmp_path, text):
    record = record_run(tmp_path / "runs")
    record.file("curve").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=f"^run {record.id}: its curve or memory is damaged .*--rerun$"):
        replay(record, tmp_path / "logs")


def test_where_wandb_cannot_write_is_an_error_of_a_replay(tmp_path):
    record = record_run(tmp_path / "runs")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="W&B could not write it"):
        replay(record, tmp_path / "file" / "logs")
