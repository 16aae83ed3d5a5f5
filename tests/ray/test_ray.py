"""Sweeps on a real Ray: the same table as here, and what becomes of jobs that fail, are lost or are asked twice."""

import os
from pathlib import Path

import psutil
from engine_sweeps import ended, overrides, started, until
from kill import table
from ray_cluster import running

from rowsft.store import Store

# A job that is killed as it starts; one that takes its worker along, and would go on without it.
FAULTS = """
import os, pathlib, signal, sys, time
if "run" in sys.orig_argv and "seed=13" in sys.orig_argv:
    os.kill(os.getpid(), signal.SIGKILL)
"""
WORKER_KILLER = """
import os, pathlib, signal, threading, time
def kill():
    for _ in range(600):
        time.sleep(0.1)
        for log in pathlib.Path(os.environ["KILL_IN"]).glob("*/attempt-1/log.txt"):
            if "training for" in log.read_text():
                pathlib.Path(os.environ["KILL_IN"], "pid").write_text(str(os.getpid()))
                os.kill(os.getppid(), signal.SIGKILL)
                return
import sys
if "run" in sys.orig_argv and "seed=15" in sys.orig_argv:
    threading.Thread(target=kill, daemon=True).start()
"""


def on(address):
    return ["hydra/launcher=ray", f"hydra.launcher.ray.init.address={address}"]


def test_a_sweep_has_the_table_of_one_without_ray_and_is_skipped_then(ray_address, workshop, tmp_path):
    jobs = ["method=none,row_sft", "seed=1,2"]
    ended(started(workshop, [*overrides(workshop, tmp_path / "here"), *jobs, "hydra.launcher.jobs=2"]), 0)
    given = [*overrides(workshop, tmp_path / "there"), *jobs, *on(ray_address)]
    lines = ended(started(workshop, given), 0)
    assert lines[-1] == "4 jobs: 4 done, 0 not" and sum(": done (" in line for line in lines) == 4
    assert table(tmp_path / "there") == table(tmp_path / "here")
    assert {record.result.concurrent_jobs for record in Store(tmp_path / "there").runs()} == {2}
    again = ended(started(workshop, given), 0)
    assert sum("done already" in line for line in again) == 4 and not any("handed over" in line for line in again)


def test_two_sweeps_at_once_run_no_job_twice(ray_address, workshop, tmp_path):
    given = [*overrides(workshop, tmp_path), *on(ray_address), "method=head", "seed=1,2"]
    both = [started(workshop, given) for _ in range(2)]
    assert [ended(sweep, 0)[-1] for sweep in both] == ["2 jobs: 2 done, 0 not"] * 2
    assert [len(record.attempts) for record in Store(tmp_path).runs()] == [1, 1]


def test_what_fails_on_a_worker_is_a_line_and_a_record(workshop, tmp_path):
    """On a cluster that is started for the sweep: its workers have its environment, and it keeps no token at home."""
    (tmp_path / "sitecustomize.py").write_text(FAULTS)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    given = [*overrides(workshop, tmp_path / "runs"), *on("local"), "method=full", "trainer.learning_rate=0.003,1e30"]
    lines = ended(started(workshop, [*given, "seed=12,13"], PYTHONPATH=path, HOME=str(tmp_path)), 1)
    assert lines[-5] == "not done:" and lines[-1] == "4 jobs: 1 done, 3 not"
    said = sorted(lines[-4:-1])
    assert sum(line.endswith("seed=13: killed by signal 9 (SIGKILL): out of memory?") for line in said) == 2
    assert sum("1e+30 seed=12: failed: TrainingDiverged: " in line for line in said) == 1
    states = sorted(record.state for record in Store(tmp_path / "runs").runs())
    assert states == ["done", "failed", "interrupted", "interrupted"]
    assert not (tmp_path / ".ray").exists()


def test_a_job_does_not_outlive_its_worker_and_goes_on_from_its_checkpoint(workshop, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(WORKER_KILLER)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    store = tmp_path / "runs"
    job = ["method=row_sft", "trainer.steps=400", "trainer.checkpoint_minutes=null", "seed=15"]
    ended(started(workshop, [*overrides(workshop, tmp_path / "here"), *job]), 0)
    given = [*overrides(workshop, store), *job, *on("local"), "hydra.launcher.ray.remote.max_retries=0"]
    lines = ended(started(workshop, given, PYTHONPATH=path, KILL_IN=str(store)), 1)
    assert lines[-1] == "1 job: 0 done, 1 not" and "WorkerCrashedError" in lines[-2]
    assert not psutil.pid_exists(int((store / "pid").read_text()))
    (record,) = Store(store).runs()
    assert record.state == "interrupted" and record.latest.error.message
    # Without the fault, and on another cluster.
    assert ended(started(workshop, given), 0)[-1] == "1 job: 1 done, 0 not"
    (record,) = Store(store).runs()
    assert record.result.resumed.times == 1
    assert table(store) == table(tmp_path / "here")


def test_a_cluster_that_dies_ends_the_sweep_and_the_next_call_carries_on(workshop, tmp_path):
    given = [*overrides(workshop, tmp_path), "method=full", "trainer.steps=200000", "seed=1,2"]
    with running(2) as (address, cluster):
        sweep = started(workshop, [*given, *on(address)])
        until(lambda: len(list(Path(tmp_path).glob("*/attempt-1/log.txt"))) == 2, sweep)
        cluster.terminate()
        lines = ended(sweep, 1)
    assert lines[-1] == "2 jobs: 0 done, 2 not" and lines[-4] == "not done:"
    assert {record.state for record in Store(tmp_path).runs()} == {"interrupted"}
    again = started(workshop, [*given, *on(address)])
    out, errors = again.communicate(timeout=200)
    assert again.returncode == 2 and "no Ray cluster answers there" in errors and errors.count("\n") == 1, out
