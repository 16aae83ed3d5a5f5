"""A study by Optuna: its trials are runs, scored on validation alone; what fails is the worst and ends nothing."""

import math
import os

import pytest
import yaml

from rowsft.store import Store


def study(workshop, store, *more, family="bert", trials=3, **environment):
    left_out = ("store=", "trainer.memory_probe_steps", "trainer.learning_rate", "budget.")
    rest = [text for text in workshop.overrides(family) if not text.startswith(left_out)]
    given = [f"store={store}", "trainer.memory_probe_steps=0", "method=row_sft", "hydra/sweeper=optuna"]
    return workshop.rowsft("sweep", *rest, *given, f"hydra.sweeper.n_trials={trials}", *more, **environment)


RATES = "trainer.learning_rate=tag(log,interval(1e-5,1e-1))"


def test_the_best_trial_is_that_with_the_lowest_loss_and_no_test_split_is_seen(workshop, tmp_path):
    """A task whose metric is better when lower: the sign is the record's own."""
    done = study(workshop, tmp_path, RATES, family="llama")
    assert done.returncode == 0, done.stderr
    records = Store(tmp_path).runs()
    assert len(records) == 3 and all(set(record.result.metrics) == {"validation"} for record in records)
    best = min(records, key=lambda record: record.result.metrics["validation"]["loss"])
    held = yaml.safe_load((tmp_path / "optimization_results.yaml").read_text())
    assert held["run"] == best.id and held["value"] == best.result.metrics["validation"]["loss"]
    assert held["best"] == [f"trainer.learning_rate={best.config['trainer']['learning_rate']}"]
    assert f"(run {best.id})" in done.stdout and done.stdout.splitlines()[-1] == "3 jobs: 3 done, 0 not"
    again = study(workshop, tmp_path, RATES, family="llama")
    assert again.returncode == 0 and again.stdout.count("done already") == 3, "the same seed makes the same trials"


def test_a_trial_that_fails_is_the_worst_and_the_study_goes_on(workshop, tmp_path):
    """In a database, too, where Optuna takes the study up again."""
    storage = [f"hydra.sweeper.storage=sqlite:///{tmp_path}/study.db", "hydra.sweeper.study_name=rates"]
    done = study(workshop, tmp_path / "runs", "trainer.learning_rate=1e30,0.001", *storage, trials=4)
    assert done.returncode == 1, (done.stdout, done.stderr)
    records = Store(tmp_path / "runs").runs()
    assert {record.state for record in records} == {"done", "failed"}
    assert "best: trainer.learning_rate=0.001: validation accuracy" in done.stdout
    import optuna

    trials = optuna.load_study(study_name="rates", storage=f"sqlite:///{tmp_path}/study.db").trials
    assert {trial.value == -math.inf for trial in trials} == {True, False}


def test_rates_are_never_chosen_on_a_test_split(workshop, tmp_path):
    done = study(workshop, tmp_path / "runs", RATES, "trainer.evaluate=[validation,test]")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "trainer.evaluate=[validation,test]: a study is scored on validation alone" in done.stderr
    nothing = study(workshop, tmp_path / "runs", "trainer.learning_rate=0.001")
    assert (nothing.returncode, nothing.stderr.count("\n")) == (2, 1) and "nothing to search" in nothing.stderr
    assert not (tmp_path / "runs").exists()


def test_a_study_that_goes_on_makes_other_trials_and_keeps_its_best(workshop, tmp_path):
    given = [RATES, f"hydra.sweeper.storage=sqlite:///{tmp_path}/study.db", "hydra.sweeper.study_name=rates"]
    for runs in (2, 4):
        done = study(workshop, tmp_path / "runs", *given, trials=2)
        assert done.returncode == 0 and "done already" not in done.stdout, (done.stdout, done.stderr)
        records = Store(tmp_path / "runs").runs()
        assert len(records) == runs
        held = yaml.safe_load((tmp_path / "runs" / "optimization_results.yaml").read_text())
        assert held["value"] == max(record.result.metrics["validation"]["accuracy"] for record in records)
    # The best of all stays so, whatever is tried after it.
    worse = study(
        workshop, tmp_path / "runs", "trainer.learning_rate=tag(log,interval(1e29,1e30))", *given[1:], trials=1
    )
    assert f"best: {held['best'][0]}: validation accuracy" in worse.stdout, worse.stdout
    assert yaml.safe_load((tmp_path / "runs" / "optimization_results.yaml").read_text()) == held


def test_trials_that_were_all_stopped_are_told_as_any_sweep_tells_them(workshop, tmp_path):
    """They have no score, which Optuna takes for a study without trials."""
    (tmp_path / "sitecustomize.py").write_text('import os, sys\nif "run" in sys.orig_argv: os.kill(os.getpid(), 9)\n')
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = study(workshop, tmp_path / "runs", RATES, trials=1, PYTHONPATH=path)
    assert done.returncode == 1 and not done.stderr, (done.stdout, done.stderr)
    assert "best: no trial has a score" in done.stdout and done.stdout.splitlines()[-1] == "1 job: 0 done, 1 not"


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("hydra.sweeper.n_trials=0", "n_trials=0: expected a whole number above 0"),
        ("hydra.sweeper.n_jobs=0", "n_jobs=0: expected a whole number above 0"),
        ("hydra.sweeper.params=3", "params=3: expected null or ranges by key"),
    ],
)
def test_settings_that_no_study_can_have_are_said_in_words(workshop, tmp_path, setting, said):
    done = study(workshop, tmp_path / "runs", RATES, setting)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and said in done.stderr
