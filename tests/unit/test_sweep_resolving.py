"""A sweep's jobs before the first starts: which are the same run, which are done, what tells them apart."""

import os
from collections import Counter
from itertools import product

import pytest

from rowsft.config.compose import compose
from rowsft.config.run_spec import run_spec
from rowsft.errors import UserError
from rowsft.store import Store
from rowsft.sweep.jobs import JobResolver
from rowsft.sweep.launcher import threads_each


def grid(store, methods=("row_sft", "lora", "full", "head")):
    settings = product(methods, (1, 2, 4, 8), (1, 2, 3))
    return [
        [f"method={method}", f"budget.rows={rows}", f"seed={seed}", f"store={store}", "trainer.steps=5"]
        for method, rows, seed in settings
    ]


def planned(jobs, rerun=False):
    return JobResolver(lambda text: None).resolve(jobs, rerun)


def test_methods_without_a_budget_run_once_a_seed(tmp_path):
    jobs = planned(grid(tmp_path))
    started = Counter(job.overrides[0] for job in jobs if job.same_as is None)
    assert started == {"method=row_sft": 12, "method=lora": 12, "method=full": 3, "method=head": 3}
    first = {job.number: job.spec.run_id for job in jobs}
    assert all(job.spec.run_id == first[job.same_as] for job in jobs if job.same_as)
    assert not any(job.done for job in jobs)


def test_runs_are_those_that_run_would_make_and_done_ones_are_known(tmp_path):
    jobs = grid(tmp_path, ("lora", "head"))
    for overrides in jobs[::5]:
        with Store(tmp_path).open(run_spec(compose(overrides)).config) as run:
            run.begin().finish("done", metrics={})
    done = {run.id for run in Store(tmp_path).runs()}
    for job in planned(jobs):
        assert job.spec.run_id == run_spec(compose(job.overrides)).run_id
        assert job.done is (job.spec.run_id in done)


def test_a_label_is_what_not_all_jobs_share(tmp_path):
    assert {job.label for job in planned(grid(tmp_path, ("lora",)))} == {
        f"budget.rows={rows} seed={seed}" for rows in (1, 2, 4, 8) for seed in (1, 2, 3)
    }
    assert planned(grid(tmp_path)[:1])[0].label == "row_sft on sentiment with minilm, seed 1"


@pytest.mark.parametrize("wrong", ["trainer.steps=0", "trainer.lr=1", "method=lorra", "experiment_name=[1]"])
def test_a_wrong_value_in_any_job_is_found_before_the_first(tmp_path, wrong):
    jobs = grid(tmp_path, ("lora",))
    with pytest.raises(UserError):
        planned([*jobs[:3], [*jobs[3], wrong], *jobs[4:6]])


def test_jobs_at_once_share_the_processors(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert [threads_each(at_once, None, {}) for at_once in (1, 2, 4, 9)] == [None, 3, 1, 1]
    assert threads_each(2, 5, {}) == 5
    assert threads_each(2, None, {"OMP_NUM_THREADS": "4"}) is None, "the user has said it"
