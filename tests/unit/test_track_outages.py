"""A W&B server that hangs, refuses, drops or is full: the job ends as it would have, within a bound."""

import time

import pytest
from tracked_run import POINTS, record_run
from wandb_files import history, read_records, run_python
from wandb_server import KEY, Server

from rowsft.tracking.offline import offline_runs

# What W&B may hold up a run at one place (its own bounds are 90 seconds at the start and none at the end), and what
# Python and W&B's own process take beside it.
WAIT, BESIDE = 2, 60
JOB = """
import logging, time
logging.basicConfig(format="%(message)s")
from rowsft.store import Store
from rowsft.tracking.content import curve, final_numbers
from rowsft.tracking.tracker import WandbTracker, tracking
(record,) = Store("runs").runs()
attempt = record.result
longest = 0
tracker = WandbTracker(mode="online", dir="logs", wait_seconds=WAIT)
with tracking(tracker, f"{record.id}-1", record.config, "g"):
    for step, values in curve(attempt, record.folder):
        begun = time.monotonic()
        tracker.log(step, values)
        longest = max(longest, time.monotonic() - begun)
    tracker.show(attempt, record.folder)
    tracker.summary(final_numbers(attempt))
print("job is done", longest)
"""


def run_against(server, folder):
    record_run(folder / "runs")
    begun = time.monotonic()
    done = run_python(JOB.replace("WAIT", str(WAIT)), folder, **server.variables)
    return done, time.monotonic() - begun


@pytest.mark.parametrize("how", ["hangs", "refuses", "drops", "429", "500", "507"])
def test_a_server_that_does_not_take_a_run_costs_a_bounded_wait_and_one_line(tmp_path, how):
    with Server(how) as server:
        done, seconds = run_against(server, tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("job is done"), done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("W&B start failed"), done.stderr
    assert "`rowsft track replay " in done.stderr and KEY not in done.stderr
    assert seconds < WAIT + BESIDE


def test_a_server_that_hangs_in_the_middle_costs_no_step_and_a_bounded_wait_at_the_end(tmp_path):
    with Server("sticks") as server:
        done, seconds = run_against(server, tmp_path)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 1, "a step waits for no server"
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("W&B show failed (TimeoutError"), done.stderr
    assert seconds < 3 * WAIT + BESIDE


def test_a_server_that_answers_gets_the_run(tmp_path):
    with Server("answers") as server:
        done, _ = run_against(server, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    ((run_id, opened),) = server.runs.items()
    assert run_id.endswith("-1") and opened["jobType"] == "row_sft" and opened["groupName"] == "g"
    losses = [(row["_step"], row["train/loss"]) for row in server.history[run_id] if "train/loss" in row]
    assert losses == [(step, pytest.approx(loss)) for step, loss, _ in POINTS]
    assert any(name.endswith("selection") for name in server.artifacts)
    for path in (tmp_path / "logs").rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


def test_what_was_not_uploaded_stays_on_disk(tmp_path):
    with Server("sticks") as server:
        run_against(server, tmp_path)
    assert offline_runs(tmp_path / "logs" / "wandb") == []
    losses = [row["train/loss"] for row in history(read_records(tmp_path / "logs")) if "train/loss" in row]
    assert losses == [loss for _, loss, _ in POINTS]
