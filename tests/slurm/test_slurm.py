"""Sweeps on a real Slurm: the same table as here; and jobs that fail, are lost, requeued, or asked for twice."""

import json
import re
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest
from cluster import on_path
from engine_sweeps import ended, overrides, started, until
from kill import table

from rowsft.store import Store

LAUNCHER = [
    "hydra/launcher=slurm",
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.mem_gb=2",
    # Less than ten minutes count as a time-out whenever the signal comes: it must be counted and borne.
    "hydra.launcher.timeout_min=9",
]
# A job that dies before anything is recorded, as one does whose memory the kernel takes back; one whose memory Slurm
# takes back, worker and all.
FAULTS = """
import os, signal, sys, time
if "seed=13" in sys.orig_argv and "run" in sys.orig_argv:
    os.kill(os.getpid(), signal.SIGKILL)
if "seed=15" in sys.orig_argv and "run" in sys.orig_argv:
    taken = bytearray(3 * 2**30)
    taken[::4096] = bytes(len(taken[::4096]))
    time.sleep(60)
"""


def queue(*options):
    return subprocess.run(["squeue", "-h", *options], check=True, capture_output=True, text=True).stdout.split()


def test_a_sweep_has_the_table_of_one_without_slurm_and_is_skipped_then(slurm, workshop, tmp_path):
    planted = {"MY_SECRET": "planted-1n9-and-more"}
    jobs = ["method=none,row_sft", "seed=1,2", "fairness={note: '${oc.env:MY_SECRET}'}"]
    here = started(workshop, [*overrides(workshop, tmp_path / "here"), *jobs, "hydra.launcher.jobs=2"], **planted)
    ended(here, 0)
    given = [*overrides(workshop, tmp_path / "there"), *jobs, *LAUNCHER]
    lines = ended(started(workshop, given, **planted), 0)
    assert lines[-1] == "4 jobs: 4 done, 0 not" and sum(": done (" in line for line in lines) == 4
    assert table(tmp_path / "there") == table(tmp_path / "here")
    records = Store(tmp_path / "there").runs()
    assert {record.result.concurrent_jobs for record in records} == {4}
    # Nothing of it beside the runs, and what there is, is the user's alone.
    folder = tmp_path / "there" / "slurm"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = [path for path in (tmp_path / "there").rglob("*") if path.is_file()]
    assert any(path.name.endswith("_submitted.pkl") for path in files)
    assert not [path for path in files if b"planted-1n9" in path.read_bytes()]
    logs = [path.read_text() for path in folder.glob("*/*_log.out")]
    assert len(logs) == 4 and all("done: run" in text for text in logs)

    again = ended(started(workshop, [*given, "experiment_name=again"], **planted), 0)
    assert sum("done already" in line for line in again) == 4 and not any("handed over" in line for line in again)
    assert len(Store(tmp_path / "there").runs("again")) == 4


def test_what_fails_on_a_worker_is_a_line_and_a_record(slurm, workshop, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(FAULTS)
    given = [*overrides(workshop, tmp_path / "runs"), *LAUNCHER, "method=none", "seed=12,13,15"]
    lines = ended(started(workshop, given, PYTHONPATH=on_path(tmp_path)), 1)
    assert lines[-4] == "not done:" and lines[-1] == "3 jobs: 1 done, 2 not"
    killed, no_memory = sorted(lines[-3:-1])
    assert killed == "  [2/3] seed=13: killed by signal 9 (SIGKILL): out of memory?"
    assert no_memory.startswith("  [3/3] seed=15: Slurm ") and "Exceeded job memory limit" in no_memory
    records = {record.config["seed"]: record for record in Store(tmp_path / "runs").runs()}
    assert {seed: record.state for seed, record in records.items()} == {
        12: "done",
        13: "interrupted",
        15: "interrupted",
    }
    assert records[13].latest.error.message in killed and records[15].latest.error.message in no_memory
    # The next call carries on.
    lines = ended(started(workshop, given), 0)
    assert sum("done already" in line for line in lines) == 1 and lines[-1] == "3 jobs: 3 done, 0 not"


def test_a_run_that_fails_and_one_that_is_cancelled_leave_the_others_going(slurm, workshop, tmp_path):
    given = [*overrides(workshop, tmp_path), *LAUNCHER, "method=full", "trainer.learning_rate=0.003,1e30", "seed=1,2"]
    sweep = started(workshop, [*given, "hydra.launcher.array_parallelism=1"])
    (number,) = until(lambda: queue("--states=PENDING", "--array", "--format=%i")[-1:], sweep)
    subprocess.run(["scancel", number], check=True)
    lines = ended(sweep, 1)
    assert lines[-1] == "4 jobs: 2 done, 2 not" and lines[-4] == "not done:"
    failed, cancelled = lines[-3:-1]
    assert "1e+30" in failed and "failed: TrainingDiverged: " in failed
    assert "1e+30" in cancelled and "Slurm" in cancelled and "cancelled" in cancelled.lower()
    states = sorted(record.state for record in Store(tmp_path).runs())
    assert states == ["done", "done", "failed", "interrupted"]


@pytest.mark.parametrize("how", ["requeued", "out of time", "preempted"])
def test_a_preempted_run_goes_on_to_the_very_same_end(slurm, workshop, tmp_path, how):
    job = ["method=row_sft", "trainer.steps=400", "trainer.checkpoint_minutes=null", "seed=4"]
    ended(started(workshop, [*overrides(workshop, tmp_path / "here"), *job]), 0)
    store = tmp_path / "there"
    sweep = started(workshop, [*overrides(workshop, store), *job, *LAUNCHER])
    log = until(lambda: next(store.glob("*/attempt-1/log.txt"), None), sweep)
    until(lambda: "training for" in log.read_text(), sweep)
    time.sleep(0.5)
    (number,) = queue("--format=%i")
    if how == "requeued":
        subprocess.run(["scontrol", "requeue", number], check=True)
    else:
        # As Slurm does signal_delay_s before the time limit; in a preemption SIGTERM may come first.
        for name in ("TERM", "USR2") if how == "preempted" else ("USR2",):
            subprocess.run(["scancel", f"--signal={name}", number], check=True)
    until(lambda: queue("--states=PENDING", "--format=%i"), sweep)
    # Slurm lets a requeued job wait for two minutes.
    subprocess.run(["scontrol", "update", f"jobid={number}", "starttime=now+15"], check=True)
    assert ended(sweep, 0)[-1] == "1 job: 1 done, 0 not"
    (record,) = Store(store).runs()
    first, second = record.attempts
    assert first.state == "interrupted" and re.fullmatch("stopped by SIG(TERM|USR2)", first.error.message)
    assert record.result == second and second.resumed.times == 1 and 0 < second.resumed.step < 400
    assert table(store) == table(tmp_path / "here")
    (folder,) = (store / "slurm").glob(f"{number}*")
    assert json.loads((record.folder / "record.json").read_text())["state"] == "done" and folder.is_dir()


def test_two_sweeps_at_once_run_no_job_twice(slurm, workshop, tmp_path):
    given = [*overrides(workshop, tmp_path), *LAUNCHER, "method=head", "seed=1,2"]
    both = [started(workshop, given) for _ in range(2)]
    assert [ended(sweep, 0)[-1] for sweep in both] == ["2 jobs: 2 done, 0 not"] * 2
    records = Store(tmp_path).runs()
    assert [len(record.attempts) for record in records] == [1, 1]


def test_a_sweep_that_is_interrupted_leaves_its_jobs_to_slurm(slurm, workshop, tmp_path):
    given = [*overrides(workshop, tmp_path), *LAUNCHER, "method=none", "seed=1"]
    sweep = started(workshop, given)
    until(lambda: queue("--states=RUNNING", "--format=%i"), sweep)
    sweep.send_signal(signal.SIGINT)
    ended(sweep, 130)
    until(lambda: not queue())
    assert [record.state for record in Store(tmp_path).runs()] == ["done"]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("hydra.launcher.partition=nowhere", "Invalid partition name specified"),
        ("hydra.launcher.gpus_per_node=9", "Requested node configuration is not available"),
        ("hydra.launcher.array_parallelism=0", "expected 1 or more"),
        ("hydra.launcher.array_parallelism=two", "array_parallelism=two: expected 1 or more"),
        ("hydra.launcher.setup=module load cuda", "a list of shell commands"),
        ("hydra.launcher.additional_parameters=exclusive", "additional_parameters=exclusive: expected null or options"),
        ("hydra.launcher.additional_parameters={reservation: mine}", "Requested reservation is invalid"),
    ],
)
def test_what_slurm_refuses_is_one_line(slurm, workshop, tmp_path, setting, said):
    store = tmp_path / "runs"
    done = workshop.rowsft("sweep", *overrides(workshop, store), "method=none", "seed=1", *LAUNCHER, setting)
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("sbatch:")]
    assert done.returncode == 2 and line.startswith("rowsft: error: ") and said in line
    assert not list(Path(store).glob("*/record.json"))
