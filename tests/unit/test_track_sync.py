"""`rowsft track`: runs of the store written again, and uploaded to a server that takes them or does not."""

import json
import shutil
import time

import pytest
from harness_factory import evaluate
from report_factory import fail, finish, outcomes
from tracked_run import POINTS, record_run
from wandb_files import read_records, rowsft, summary
from wandb_server import KEY, Server

from rowsft import report
from rowsft.report.flat import table_rows
from rowsft.store import Store
from rowsft.tracking import names
from rowsft.tracking.offline import offline_runs


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with two runs in its store, both written as offline runs."""
    folder = tmp_path_factory.mktemp("written")
    records = [record_run(folder / "runs", seed=seed) for seed in (1, 2)]
    done = rowsft(folder, "track", "replay", "--experiment", "small")
    assert (done.returncode, done.stderr) == (0, "")
    ids = sorted(f"{record.id}-1" for record in records)
    assert done.stdout.splitlines()[:2] == [f"written {name}" for name in ids]
    return folder


@pytest.fixture
def folder(written, tmp_path):
    shutil.copytree(written, tmp_path, dirs_exist_ok=True, symlinks=True)
    return tmp_path


def ids(folder):
    return [run.id for run in offline_runs(folder / "wandb")]


def test_runs_are_uploaded_once_with_all_their_history(folder):
    with Server("answers") as server:
        done = rowsft(folder, "track", "sync", **server.variables)
        assert done.returncode == 0, done.stderr
        assert sorted(done.stdout.splitlines()[:2]) == sorted(f"uploaded {name}" for name in ids(folder))
        assert done.stdout.splitlines()[-1] == "2 uploaded, 0 were there, 0 failed"
        assert sorted(server.runs) == sorted(ids(folder))
        for name in ids(folder):
            rows = [(row["_step"], row["train/loss"]) for row in server.history[name] if "train/loss" in row]
            assert rows == [(step, pytest.approx(loss)) for step, loss, _ in POINTS]
        before = len(server.requests)
        again = rowsft(folder, "track", "sync", **server.variables)
        assert again.stdout == "0 uploaded, 2 were there, 0 failed\n" and len(server.requests) == before


@pytest.mark.parametrize("how", ["hangs", "refuses", "drops", "429", "507", "sticks"])
def test_a_server_that_does_not_take_them_is_given_up_in_bounded_time(folder, how):
    begun = time.monotonic()
    with Server(how) as server:
        done = rowsft(folder, "track", "sync", "--wait", "2", **server.variables)
    assert done.returncode == 1 and done.stdout == "0 uploaded, 0 were there, 2 failed\n", done.stderr
    lines = done.stderr.splitlines()
    assert [line.split(": ")[2] for line in lines] == ids(folder)
    assert all("no answer within 2 seconds" in line for line in lines) and KEY not in done.stderr
    assert time.monotonic() - begun < 90, "`wandb sync` alone waits without end"


def test_a_server_that_says_no_is_quoted(folder):
    with Server("401") as server:
        done = rowsft(folder, "track", "sync", **server.variables)
    assert done.returncode == 1
    assert all(line.endswith("storage quota exceeded") for line in done.stderr.splitlines()), done.stderr


def test_without_an_account_one_line_says_what_to_do(folder):
    done = rowsft(folder, "track", "sync")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("rowsft: error: W&B: no API key; `wandb login`") and done.stderr.count("\n") == 1


def test_a_key_in_a_wrong_form_is_said_in_one_line(folder):
    done = rowsft(folder, "track", "sync", WANDB_API_KEY="short")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "cannot be used" in done.stderr, done.stderr


def test_where_nothing_is_to_be_uploaded_one_line_says_how_to_make_some(tmp_path):
    done = rowsft(tmp_path, "track", "sync", "--dir", "none")
    assert done.returncode == 2 and "no offline runs" in done.stderr and done.stderr.count("\n") == 1


def test_two_folders_of_one_run_are_not_uploaded_until_a_replay_makes_one_of_them(folder):
    first = offline_runs(folder / "wandb")[0]
    shutil.copytree(first.path, first.path.with_name(f"offline-run-20200101_000000-{first.id}"))
    with Server("answers") as server:
        done = rowsft(folder, "track", "sync", **server.variables)
        run = first.id.rpartition("-")[0]
        assert done.returncode == 1 and first.id not in server.runs and len(server.runs) == 1
        assert f"`rowsft track replay {run}`" in done.stderr
        assert rowsft(folder, "track", "replay", run).returncode == 0
        done = rowsft(folder, "track", "sync", **server.variables)
        assert done.stdout.splitlines() == [f"uploaded {first.id}", "1 uploaded, 1 were there, 0 failed"]


def test_the_comparison_is_the_reports_rows(tmp_path):
    store = Store(tmp_path / "runs")
    runs = [finish(store, outcomes(60), method=method, task="sentiment") for method in ("head", "lora")]
    evaluate(store, runs[1], "boolq", [1, 0, 1, 1])
    fail(store, "failed", {"type": "TrainingDiverged", "message": "loss is nan"}, method="full", task="sentiment")
    done = rowsft(tmp_path, "track", "table", "--experiment", "demo", "--project", "rows")
    assert (done.returncode, done.stderr) == (0, "")
    (run,) = offline_runs(tmp_path / "wandb")
    assert run.id == "comparison-demo"
    held = summary(read_records(run.path))[f"{names.COMPARISON}/path"]
    table = json.loads((run.path / "files" / held).read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    wanted = table_rows(report.sections(tmp_path / "runs", "demo"))
    assert len(rows) == len(wanted) == 3
    assert [row["lm_eval.boolq.acc"] for row in rows] == [None, 0.75, None]
    for row, want in zip(rows, wanted, strict=True):
        assert {key: value for key, value in row.items() if value is not None} == pytest.approx(
            {key: value for key, value in want.items() if value is not None}
        )
    again = rowsft(tmp_path, "track", "table", "--experiment", "demo")
    assert again.returncode == 0 and ids(tmp_path) == ["comparison-demo"]


def test_a_store_without_such_runs_is_said_in_one_line(tmp_path):
    record_run(tmp_path / "runs")
    done = rowsft(tmp_path, "track", "replay", "--experiment", "other")
    assert done.returncode == 2 and "no run of experiment other that has ended" in done.stderr
