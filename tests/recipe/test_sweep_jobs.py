"""A sweep as a user meets it: what it runs once, what it says, and what becomes of jobs that are killed."""

import json
import os

import pytest

from rowsft.config.compose import compose
from rowsft.config.run_spec import run_spec
from rowsft.store import Store

# Dies as it starts, before any record exists, as a job does whose memory the system takes back.
KILLER = """
import os, signal, sys
if "seed=13" in sys.orig_argv:
    os.kill(os.getpid(), signal.SIGKILL)
if "seed=14" in sys.orig_argv:
    os._exit(137)
"""


def before(folder):
    """A PYTHONPATH on which `folder` comes first."""
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


def cheap(workshop, store):
    rest = [text for text in workshop.overrides("bert") if not text.startswith(("store=", "budget.", "trainer.memory"))]
    return [*rest, f"store={store}", "trainer.memory_probe_steps=0"]


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_job_that_is_killed_before_it_can_record_anything_leaves_a_record(workshop, tmp_path, at_once):
    (tmp_path / "sitecustomize.py").write_text(KILLER)
    command = [*cheap(workshop, tmp_path / "runs"), "method=none", "seed=12,13,14", f"hydra.launcher.jobs={at_once}"]
    done = workshop.rowsft("sweep", *command, "experiment_name=killed", PYTHONPATH=before(tmp_path))
    assert done.returncode == 1, done.stderr
    said = "killed by signal 9 (SIGKILL): out of memory?"
    lines = done.stdout.splitlines()
    assert (lines[-4], lines[-1]) == ("not done:", "3 jobs: 1 done, 2 not")
    assert sorted(lines[-3:-1]) == [f"  [2/3] seed=13: {said}", f"  [3/3] seed=14: {said}"]
    assert "status -9" not in done.stdout
    # What all jobs share is not said with each.
    assert not any("trainer.batch_size" in line for line in lines)
    records = {record.config["seed"]: record for record in Store(tmp_path / "runs").runs("killed")}
    assert [records[seed].state for seed in (12, 13, 14)] == ["done", "interrupted", "interrupted"]
    assert records[13].latest.error.message == said
    shown = json.loads(workshop.rowsft("runs", "--store", str(tmp_path / "runs"), "--json").stdout)
    assert sorted((row["seed"], said in str(row["reason"])) for row in shown) == [(12, False), (13, True), (14, True)]


def test_a_method_without_budget_runs_once_for_all_budgets(workshop, tmp_path):
    """Side by side too, and entered in every experiment that asks."""
    store = tmp_path / "runs"
    command = ["sweep", *cheap(workshop, store), "method=none,head", "budget.rows=1,2,3", "hydra.launcher.jobs=2"]
    done = workshop.rowsft(*command, "--rerun", "experiment_name=one,two", "trainer.steps=2")
    assert done.returncode == 0, done.stderr
    records = Store(store).runs()
    assert [len(record.attempts) for record in records] == [1, 1]
    assert all(record.experiments == ["one", "two"] for record in records)
    assert done.stdout.count("the same run as") == 10 and done.stdout.splitlines()[-1] == "12 jobs: 12 done, 0 not"
    again = workshop.rowsft(*command, "experiment_name=one,two", "trainer.steps=2")
    assert again.stdout.count("done already") == 12


def test_a_sweep_with_a_wrong_value_writes_nothing(workshop, tmp_path):
    command = ["sweep", *cheap(workshop, tmp_path / "runs"), "method=lora", "experiment_name=[1],b"]
    done = workshop.rowsft(*command)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_finished_run_is_told_without_torch(workshop, tmp_path):
    command = [*cheap(workshop, tmp_path / "runs"), "method=none", "seed=12"]
    assert workshop.rowsft("run", *command).returncode == 0
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    (tmp_path / "transformers.py").write_text("raise SystemExit('transformers was imported')")
    again = workshop.rowsft("run", *command, PYTHONPATH=before(tmp_path))
    assert again.returncode == 0 and "done already" in again.stderr, again.stderr
    swept = workshop.rowsft("sweep", *command, PYTHONPATH=before(tmp_path))
    assert swept.returncode == 0 and "done already" in swept.stdout, swept.stderr


def test_help_tells_how_many_jobs_at_once(workshop):
    assert "hydra.launcher.jobs=2" in workshop.rowsft("sweep", "--help").stdout


def test_a_sweep_leaves_what_it_is_told_to_leave(workshop, tmp_path):
    """Of a failed, an interrupted and a new run `retry=interrupted` starts two; the third is listed as not done."""
    given = [*cheap(workshop, tmp_path / "runs"), "method=none"]
    for seed, state in ((1, "failed"), (2, "interrupted")):
        with Store(tmp_path / "runs").open(run_spec(compose([*given, f"seed={seed}"])).config) as run:
            run.begin().finish(state)
    done = workshop.rowsft("sweep", *given, "seed=1,2,3", "retry=interrupted")
    assert done.returncode == 1, done.stderr
    why = "left as it is: it ended as failed, and retry=interrupted; retry=all tries it again"
    assert done.stdout.splitlines()[-3:] == ["not done:", f"  [1/3] seed=1: {why}", "3 jobs: 2 done, 1 not"]
    one = workshop.rowsft("run", *given, "seed=1", "retry=[interrupted,oom]")
    assert one.returncode == 1 and "retry=interrupted,oom; retry=all tries it again" in one.stderr
    wrong = workshop.rowsft("run", *given, "seed=1", "retry=broken")
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1
    assert "retry=broken: expected all, interrupted, failed, oom, or a list" in wrong.stderr
    again = workshop.rowsft("sweep", *given, "seed=1,2,3")
    assert again.returncode == 0, again.stdout
