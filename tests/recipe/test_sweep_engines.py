"""Jobs handed to an engine: what it is given, what is not handed over at all, and what becomes of a job it loses."""

import os
from contextlib import contextmanager
from importlib.util import find_spec

import pytest
from hydra.core.utils import run_job
from hydra.plugins.launcher import Launcher

from rowsft.store import Store
from rowsft.sweep import under_way
from rowsft.sweep.engine import Engine
from rowsft.sweep.worker import packed, unpacked


class NextDoor(Launcher, Engine):
    """An engine without a cluster: it runs each job when it is asked for, and loses those of seed 2."""

    name = "next door"

    def __init__(self):
        self.given, self.asked = [], lambda fetch: fetch()

    def setup(self, *, hydra_context, task_function, config):
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides, initial_job_idx):
        self.given = job_overrides
        return [self.asked(lambda overrides=overrides: self._run(overrides)) for overrides in job_overrides]

    def _run(self, overrides):
        if "seed=2" in unpacked(overrides[0].partition("=")[2]):
            raise RuntimeError("node17 is gone")
        config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        return run_job(
            hydra_context=self.context,
            task_function=self.task,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )

    def launcher(self):
        return self

    def beside(self, jobs):
        return 3

    def logs(self):
        return "nowhere"

    def lost(self, error):
        return str(error)

    @contextmanager
    def fetching(self, fetched):
        self.asked = fetched
        yield


@pytest.fixture
def engine(workshop, monkeypatch):
    monkeypatch.chdir(workshop.folder)
    # A worker's own sweep takes the place of this one, in this process: it is put back after each job.
    monkeypatch.setattr(under_way, "sweep", under_way.Sweep())
    engine = NextDoor()
    run = engine._run

    def on_a_worker(overrides):
        here = under_way.sweep
        try:
            return run(overrides)
        finally:
            under_way.sweep = here

    engine._run = on_a_worker
    return engine


def overrides(workshop, store, *more):
    left_out = ("store=", "trainer.memory_probe_steps", "budget.")
    rest = [text for text in workshop.overrides("bert") if not text.startswith(left_out)]
    return [*rest, f"store={store}", "trainer.memory_probe_steps=0", "method=none", *more]


def test_a_lost_job_is_a_line_and_a_record_and_done_ones_are_not_handed_over(engine, workshop, tmp_path):
    jobs = [overrides(workshop, tmp_path, f"seed={seed}") for seed in (1, 2, 1)]
    assert engine.run(jobs, 0, tmp_path) == [0, 1, 0]
    assert under_way.sweep.failed == ["[2/3] seed=2: node17 is gone"]
    records = {record.config["seed"]: record for record in Store(tmp_path).runs()}
    assert records[1].result.concurrent_jobs == 3 and records[1].latest.pid != os.getpid()
    assert records[2].state == "interrupted" and records[2].latest.error.message == "node17 is gone"
    assert [unpacked(job.partition("=")[2])[-1] for (job,) in engine.given] == ["seed=1", "seed=2"]
    # What is lost once more is recorded once more; what is done is not handed over.
    under_way.begin(rerun=False)
    assert engine.run(jobs, 0, tmp_path) == [0, 1, 0]
    assert [unpacked(job.partition("=")[2])[-1] for (job,) in engine.given] == ["seed=2"]
    assert len(Store(tmp_path).get(records[2].id).attempts) == 2


def test_what_retry_leaves_is_not_handed_over(engine, workshop, tmp_path):
    jobs = [overrides(workshop, tmp_path, "seed=2", "retry=failed"), overrides(workshop, tmp_path, "seed=3")]
    assert engine.run(jobs, 0, tmp_path) == [1, 0]
    under_way.begin(rerun=False)
    engine.given = []
    assert engine.run(jobs, 0, tmp_path) == [1, 0] and engine.given == []
    assert "left as it is: it ended as interrupted" in under_way.sweep.failed[0]


def test_overrides_travel_as_they_are():
    given = ["task.prompt='{a} ${oc.env:X} \"'", "model.source=~/x=1", "seed=1,2", "name=ä"]
    assert unpacked(packed(given).partition("=")[2]) == given


@pytest.mark.parametrize(
    ("choice", "module"),
    [
        ("hydra/launcher=slurm", "hydra_submitit_launcher"),
        ("hydra/launcher=ray", "hydra_ray_launcher"),
        ("hydra/sweeper=optuna", "hydra_optuna_sweeper"),
    ],
)
def test_a_missing_plugin_is_one_line_that_names_the_extra(workshop, tmp_path, choice, module):
    if find_spec(f"hydra_plugins.{module}") is not None:
        pytest.skip("it is installed")
    done = workshop.rowsft("sweep", *overrides(workshop, tmp_path / "runs"), choice)
    extra = choice.rpartition("=")[2]
    said = f"rowsft: error: {choice}: needs a plugin that is not installed; pip install 'rowsft[{extra}]'\n"
    assert (done.returncode, done.stderr) == (2, said) and not (tmp_path / "runs").exists()


def test_a_launcher_that_runs_no_job_is_refused(workshop, tmp_path):
    done = workshop.rowsft("sweep", *overrides(workshop, tmp_path / "runs"), "hydra/launcher=basic")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "hydra/launcher=basic: cannot run the jobs; expected fresh_process, slurm or ray" in done.stderr
