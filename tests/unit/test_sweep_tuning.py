"""The tuning stage on recorded runs: which jobs it asks for, and which rate each setting of a sweep gets.

Jobs are not trained here: `Recorder` launches them by writing a record whose score is a function of its configuration.
"""

import math

import pytest
from omegaconf import OmegaConf

from rowsft.cli.main import main
from rowsft.config.compose import compose
from rowsft.config.run_spec import run_spec
from rowsft.config.tune import asks_for_a_rate
from rowsft.errors import UserError
from rowsft.store import Store
from rowsft.store.identity import experiment_notes
from rowsft.sweep.jobs import JobResolver
from rowsft.sweep.tuning import Stage

GRID = "tune.lr=[1e-4,3e-4,1e-3,3e-3,1e-2]"
#: One for all tests: what it has composed, it composes fast.
RESOLVER = JobResolver(lambda text: None)


def resolved(jobs):
    return RESOLVER.resolve(jobs, False)


class Recorder:
    """Launches jobs by recording them: `score(config)` is a metric on validation, or the state of a run without one."""

    def __init__(self, score, metric="accuracy", higher=True, stop_after=None):
        self.score, self.metric, self.higher, self.left = score, metric, higher, stop_after
        self.rounds: list[list[dict]] = []
        self.said: list[str] = []

    def launch(self, jobs):
        self.rounds.append([])
        for job in resolved(jobs):
            config = job.spec.config
            self.rounds[-1].append(config)
            with Store(config["store"]).open(config) as run:
                if run.record.result is None:
                    if self.left == 0:
                        raise KeyboardInterrupt
                    self.left = None if self.left is None else self.left - 1
                    self._record(run, self.score(config))

    def _record(self, run, score):
        if score is None:
            return
        attempt = run.begin()
        if isinstance(score, str):
            attempt.finish(score)
        else:
            attempt.update(primary_metric=self.metric, higher_is_better=self.higher)
            attempt.finish("done", metrics={"validation": {self.metric: score}}, seconds={"total": 6.0})


def tuned(tmp_path, score, *extra, methods=("lora", "row_sft"), budgets=(2, 16), seeds=(1, 2), **how):
    jobs = [
        [f"method={method}", f"budget.rows={rows}", f"seed={seed}", f"store={tmp_path}", "experiment_name=mine", *extra]
        for method in methods
        for rows in budgets
        for seed in seeds
    ]
    recorder = Recorder(score, **how)
    return Stage(resolved, recorder.launch, recorder.said.append).run(jobs), recorder


def hill(config):
    """The best rate falls with the budget and differs by method."""
    peak = {"lora": -3.0, "row_sft": -2.5}.get(config["method"]["name"], -3.5) - 0.1 * (config["budget"]["rows"] == 16)
    return 1 - abs(math.log10(config["trainer"]["learning_rate"]) - peak)


def rates_of(result):
    found = {}
    for job in result.jobs:
        values = dict(text.split("=", 1) for text in job)
        found.setdefault((values["method"], values["budget.rows"]), set()).add(values.get("trainer.learning_rate"))
    return found


def test_every_setting_gets_the_best_rate_of_its_own_grid(tmp_path):
    result, recorder = tuned(tmp_path, hill, GRID)
    # 1e-2.6 lies between the half step below 3e-3 (at a ratio of 3.16) and 3e-3 itself.
    assert rates_of(result) == {
        ("lora", "2"): {"0.001"},
        ("lora", "16"): {"0.001"},
        ("row_sft", "2"): {"0.003"},
        ("row_sft", "16"): {"0.003"},
    }
    assert [len(jobs) for jobs in recorder.rounds] == [20, 8], "all settings' grids together, then all refinements"
    assert not result.left_out
    line = next(line for line in recorder.said if "method=lora budget.rows=16" in line)
    assert line.endswith("learning rate 0.001 of 7 tried (5 + 2 refined), 0.7 minutes of computing")


def test_runs_of_the_grid_see_validation_alone_at_a_seed_that_the_sweep_does_not_use(tmp_path):
    _, recorder = tuned(tmp_path, hill, GRID)
    for config in (config for jobs in recorder.rounds for config in jobs):
        assert config["seed"] == 0 and config["experiment_name"] == "mine.tuning"
        assert config["trainer"]["evaluate"] == ["validation"] and config["trainer"]["memory_probe_steps"] == 0
    assert Store(tmp_path).experiments() == ["mine.tuning"]


def test_a_tuned_run_is_the_run_that_one_would_ask_for_by_hand(tmp_path):
    result, _ = tuned(tmp_path, hill, GRID, methods=("lora",))
    by_hand = ["method=lora", "budget.rows=2", "seed=1", f"store={tmp_path}", "trainer.learning_rate=1e-3"]
    assert run_spec(compose(result.jobs[0])).run_id == run_spec(compose(by_hand)).run_id
    # What it was tuned with is in its notes, and no part of the id.
    assert compose(result.jobs[0])["tune"]["seeds"] == [0]


def test_measuring_alone_finds_the_rates_of_a_grid_that_is_done_and_runs_none(tmp_path):
    alone = "measure=alone"
    result, recorder = tuned(tmp_path, hill, GRID, alone, methods=("lora",))
    assert recorder.rounds == [] and not result.jobs and Store(tmp_path).runs() == []
    why = "the run at 0.0001 is not done, and measure=alone runs none; run the sweep without it first"
    assert [text.endswith(why) for _, text in result.left_out] == [True] * 4
    before, _ = tuned(tmp_path, hill, GRID, methods=("lora",))
    result, recorder = tuned(tmp_path, hill, GRID, alone, methods=("lora",))
    assert recorder.rounds == [] and not result.left_out and rates_of(result) == rates_of(before)


def test_a_best_at_an_edge_is_followed_for_a_stated_number_of_rates(tmp_path):
    def rising(config):
        return config["trainer"]["learning_rate"] if config["method"]["name"] == "lora" else hill(config)

    result, recorder = tuned(tmp_path, rising, GRID, "tune.extensions=2", "tune.refine=false", methods=("lora",))
    assert rates_of(result) == {("lora", "2"): {"0.1"}, ("lora", "16"): {"0.1"}}
    assert [len(jobs) for jobs in recorder.rounds] == [10, 2, 2]
    assert "of 7 tried (5 + 2 extended), still at the edge of what was tried" in recorder.said[-1]


def test_lower_is_better_where_the_metric_says_so(tmp_path):
    result, _ = tuned(tmp_path, lambda config: -hill(config), GRID, metric="loss", higher=False, methods=("lora",))
    assert rates_of(result)["lora", "2"] == {"0.001"}


@pytest.mark.parametrize("bad", ["failed", "oom", math.nan, -math.inf])
def test_a_rate_that_failed_or_gave_no_number_is_the_worst(tmp_path, bad):
    def score(config):
        return bad if config["trainer"]["learning_rate"] >= 1e-3 else config["trainer"]["learning_rate"]

    result, _ = tuned(tmp_path, score, GRID, "tune.refine=false", methods=("lora",))
    assert rates_of(result)["lora", "2"] == {"0.0003"}


def test_of_equal_scores_the_lowest_rate_is_taken(tmp_path):
    result, _ = tuned(tmp_path, lambda config: 0.5, GRID, "tune.extensions=0", "tune.refine=false", methods=("lora",))
    assert rates_of(result)["lora", "2"] == {"0.0001"}


def test_a_setting_that_fails_at_every_rate_is_left_out_in_one_line_and_the_rest_goes_on(tmp_path):
    def score(config):
        return "failed" if config["method"]["name"] == "lora" and config["budget"]["rows"] == 2 else hill(config)

    result, recorder = tuned(tmp_path, score, GRID)
    assert set(rates_of(result)) == {("lora", "16"), ("row_sft", "2"), ("row_sft", "16")}
    assert [overrides[2] for overrides, _ in result.left_out] == ["seed=1", "seed=2"]
    assert {why for _, why in result.left_out} == {
        "tuned: method=lora budget.rows=2: left out, no learning rate: failed at every rate "
        "(0.0001, 0.0003, 0.001, 0.003, 0.01)"
    }
    assert [len(jobs) for jobs in recorder.rounds] == [20, 6]


@pytest.mark.parametrize(("lacking", "said"), [("interrupted", "has no result"), (None, "has no result")])
def test_a_run_that_was_stopped_chooses_nothing(tmp_path, lacking, said):
    """Unlike one that failed: it says nothing of its rate, and the next call has its score."""

    def score(config):
        return lacking if config["trainer"]["learning_rate"] == 1e-3 else hill(config)

    result, _ = tuned(tmp_path, score, GRID, methods=("lora",))
    assert not result.jobs and len(result.left_out) == 4 and all(said in why for _, why in result.left_out)
    again, _ = tuned(tmp_path, hill, GRID, methods=("lora",))
    assert rates_of(again)["lora", "2"] == {"0.001"}


def test_methods_that_read_no_rate_run_as_they_are(tmp_path):
    result, recorder = tuned(tmp_path, hill, GRID, methods=("none", "lora"))
    assert rates_of(result)["none", "2"] == {None} and rates_of(result)["lora", "2"] == {"0.001"}
    assert {config["method"]["name"] for jobs in recorder.rounds for config in jobs} == {"lora"}
    only, recorder = tuned(tmp_path, hill, GRID, methods=("none",))
    assert not recorder.rounds and len(only.jobs) == 4


def test_without_a_grid_nothing_is_tuned(tmp_path):
    result, recorder = tuned(tmp_path, hill)
    assert not recorder.rounds and rates_of(result)["lora", "2"] == {None}


def test_several_tuning_seeds_are_averaged_and_one_that_failed_fails_the_rate(tmp_path):
    def score(config):
        rate, seed = config["trainer"]["learning_rate"], config["seed"]
        if rate == 3e-3 and seed == 8:
            return "failed"
        return {7: 0.9 if rate == 3e-3 else 0.5, 8: 0.5 + (rate == 3e-4)}[seed]

    result, recorder = tuned(tmp_path, score, GRID, "tune.seeds=[7,8]", "tune.refine=false", methods=("lora",))
    assert rates_of(result)["lora", "2"] == {"0.0003"} and len(recorder.rounds[0]) == 20


def test_halving_runs_short_first_and_whole_ones_for_what_is_left(tmp_path):
    result, recorder = tuned(
        tmp_path, hill, GRID, "tune.halving=true", "trainer.steps=90", "tune.refine=false", methods=("lora",)
    )
    lengths = [[config["trainer"]["steps"] for config in jobs] for jobs in recorder.rounds]
    assert lengths == [[10] * 10, [30] * 4, [90] * 2]
    assert rates_of(result)["lora", "2"] == {"0.001"}
    assert "chosen by successive halving" in recorder.said[-1]
    # Runs of fewer steps have ids of their own: their schedule is another.
    assert len({run.id for run in Store(tmp_path).runs()}) == 16


@pytest.mark.parametrize("stop_after", [0, 7, 21])
def test_a_stage_that_is_stopped_goes_on_to_the_same_rates_and_runs_nothing_twice(tmp_path, stop_after):
    whole, _ = tuned(tmp_path / "whole", hill, GRID)
    with pytest.raises(KeyboardInterrupt):
        tuned(tmp_path / "cut", hill, GRID, stop_after=stop_after)
    again, _ = tuned(tmp_path / "cut", hill, GRID)
    assert rates_of(again) == rates_of(whole)
    runs = {place: Store(tmp_path / place).runs() for place in ("whole", "cut")}
    assert [run.id for run in runs["cut"]] == [run.id for run in runs["whole"]]
    assert all(len(run.attempts) == 1 for run in runs["cut"])


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["trainer.learning_rate=1e-3"], "trainer.learning_rate=1e-3: tune.lr chooses the rates"),
        (["tune.seeds=[2,5]"], "tune.seeds=[2, 5]: 2 is one of the sweep's own seeds"),
        (["tune.seeds=[]"], "tune.seeds=[]: expected a list of different seeds"),
        (["tune.lr=[1e-3]"], "tune.lr=[0.001]: expected at least two learning rates"),
        (["tune.lr=[1e-3,0]"], "tune.lr=[0.001, 0.0]: expected learning rates above 0"),
        (["tune.lr=[1e-3,1.01e-3]"], "0.001 and 0.00101 are one rate"),
        (["tune.extensions=-1"], "tune.extensions=-1: expected 0 or more"),
        (["tune.halving={factor:1}"], "tune.halving.factor=1: expected 2 or more"),
        (["tune.halving={steps:[10,150]}"], "expected fewer steps than trainer.steps=150"),
        (["tune.halving={rungs:2}"], "tune.halving.rungs: nothing reads this key"),
        (["+tune.rates=[1e-3]"], "tune.rates: nothing reads this key"),
    ],
)
def test_what_cannot_be_tuned_is_one_line_and_nothing_is_written(tmp_path, extra, said):
    with pytest.raises(UserError) as error:
        tuned(tmp_path / "runs", hill, GRID, *extra)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_a_given_rate_holds_where_the_stage_is_taken_out(tmp_path):
    result, recorder = tuned(tmp_path, hill, GRID, "tune.lr=null", "trainer.learning_rate=1e-3")
    assert not recorder.rounds and rates_of(result)["lora", "2"] == {"1e-3"}


ALPHAS = ("tune.lr=[3e-4,1e-3,3e-3]", "tune.alpha=[16,8]", "tune.extensions=0", "tune.refine=false")
#: As few jobs as show it.
SMALL = {"budgets": (2,), "seeds": (1,)}


def alpha_hill(config):
    """LoRA's best is 1e-3 at alpha 16; where an alpha is larger, its best rate is lower."""
    alpha = config["method"].get("alpha") or 16
    rate = config["trainer"]["learning_rate"]
    return 1 - abs(math.log10(rate * alpha / 16) + 3) - 0.1 * abs(math.log2(alpha / 16))


def values_of(job):
    return dict(text.split("=", 1) for text in job)


def test_each_alpha_has_a_grid_of_rates_and_methods_without_one_are_tuned_by_rate_alone(tmp_path):
    methods = ("lora", "rslora", "row_sft")
    result, recorder = tuned(tmp_path, alpha_hill, *ALPHAS, methods=methods, **SMALL)
    (configs,) = recorder.rounds
    tried = {name: [one["method"].get("alpha") for one in configs if one["method"]["name"] == name] for name in methods}
    assert tried == {"lora": [8] * 3 + [16] * 3, "rslora": [8] * 3 + [16] * 3, "row_sft": [None] * 3}
    assert all(one["method"]["scaling"] is None for one in configs if one["method"]["name"] == "lora")
    for job in map(values_of, result.jobs):
        own = {key: value for key, value in job.items() if key in ("method.alpha", "method.scaling")}
        wanted = {"method.alpha": "16.0"} | ({"method.scaling": "null"} if job["method"] == "lora" else {})
        assert own == ({} if job["method"] == "row_sft" else wanted) and job["trainer.learning_rate"] == "0.001"
    line = next(line for line in recorder.said if "method=lora" in line)
    assert line.endswith("alpha 16, learning rate 0.001 of 6 tried (3 at each of 2 alphas), 0.6 minutes of computing")
    # By hand it would be the same run, and its notes keep the alphas.
    by_hand = ["method=lora", "budget.rows=2", "seed=1", f"store={tmp_path}", "trainer.learning_rate=1e-3"]
    by_hand += ["method.alpha=16", "method.scaling=null"]
    config = compose(result.jobs[0])
    assert run_spec(config).run_id == run_spec(compose(by_hand)).run_id
    assert experiment_notes(OmegaConf.to_container(config))["tune"]["alpha"] == [16, 8]


def test_notes_of_a_sweep_without_alphas_stay_as_they_were():
    asked = OmegaConf.to_container(compose(["method=lora", GRID]))
    assert asked["tune"]["alpha"] is None and list(experiment_notes(asked)["tune"]) == [
        "lr",
        "seeds",
        "extensions",
        "refine",
        "halving",
    ]


def test_a_stage_with_alphas_that_is_stopped_comes_to_the_same(tmp_path):
    def once(place, **how):
        return tuned(tmp_path / place, alpha_hill, *ALPHAS, methods=("lora",), **SMALL, **how)

    whole, _ = once("whole")
    with pytest.raises(KeyboardInterrupt):
        once("cut", stop_after=4)
    again, _ = once("cut")
    chosen = [{key: value for key, value in values_of(job).items() if key != "store"} for job in again.jobs]
    assert chosen == [{key: v for key, v in values_of(job).items() if key != "store"} for job in whole.jobs]
    assert all(len(run.attempts) == 1 for run in Store(tmp_path / "cut").runs())


def test_halving_goes_on_for_each_alpha_by_itself(tmp_path):
    short = ["tune.halving=true", "trainer.steps=90"]
    result, recorder = tuned(tmp_path, alpha_hill, *ALPHAS, *short, methods=("lora",), **SMALL)
    lengths = [[config["trainer"]["steps"] for config in jobs] for jobs in recorder.rounds]
    assert lengths == [[30] * 6, [90] * 2]
    assert {values_of(job)["method.alpha"] for job in result.jobs} == {"16.0"}


def test_an_alpha_that_fails_at_every_rate_is_the_worst_and_all_of_them_leave_the_setting_out(tmp_path):
    def score(config):
        return "failed" if config["method"]["alpha"] == 16 or config["budget"]["rows"] == 2 else alpha_hill(config)

    result, _ = tuned(tmp_path, score, *ALPHAS, methods=("lora",), seeds=(1,))
    (job,) = map(values_of, result.jobs)
    assert job["budget.rows"] == "16" and job["method.alpha"] == "8.0" and job["trainer.learning_rate"] == "0.003"
    ((_, why),) = result.left_out
    assert why.endswith("failed at every rate (0.0003, 0.001, 0.003) and alpha (8, 16)")


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["tune.alpha=[]"], "tune.alpha=[]: expected values of method.alpha above 0"),
        (["tune.alpha=[8,0]"], "tune.alpha=[8.0, 0.0]: expected values of method.alpha above 0"),
        (["tune.alpha=[8,-1]"], "tune.alpha=[8.0, -1.0]: expected values of method.alpha above 0"),
        (["tune.alpha=[8,16,8.0]"], "tune.alpha=[8.0, 16.0, 8.0]: expected different values"),
        (["tune.alpha=8"], "tune.alpha=8: expected"),
        (["tune.alpha=[8]", "tune.lr=null"], "tune.alpha=[8.0]: each alpha is tried at the rates tune.lr"),
        (["tune.alpha=[8]", "method.alpha=4", "method.scaling=null"], "method.alpha=4: tune.alpha chooses alpha"),
        (["tune.alpha=[8]", "method.scaling=1"], "method.scaling=1: tune.alpha chooses alpha"),
        (["tune.alpha=[8]", "trainer.learning_rate=1"], "set tune.lr=null tune.alpha=null to name rates yourself"),
    ],
)
def test_alphas_that_cannot_be_tuned_are_one_line_and_nothing_is_written(tmp_path, extra, said):
    with pytest.raises(UserError) as error:
        tuned(tmp_path / "runs", alpha_hill, GRID, *extra, methods=("lora",), **SMALL)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_alphas_for_no_method_that_has_one_are_refused(tmp_path):
    with pytest.raises(UserError) as error:
        tuned(tmp_path / "runs", alpha_hill, *ALPHAS, methods=("row_sft", "full"), **SMALL)
    assert str(error.value).startswith(
        "tune.alpha=[16, 8]: none of the sweep's methods has method.alpha (full, row_sft)"
    )


def test_a_default_tuning_seed_is_none_of_the_sweeps(tmp_path):
    _, recorder = tuned(tmp_path, hill, GRID, methods=("lora",), seeds=(0, 1, 3))
    assert {config["seed"] for jobs in recorder.rounds for config in jobs} == {2}


def test_one_run_has_no_tuning_stage(capsys):
    with pytest.raises(SystemExit) as end:
        main(["run", "experiment=row_budget", "method=lora"])
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1
    assert said.startswith("rowsft: error: tune.lr: the tuning stage of `rowsft sweep` chooses the rate")
    assert not asks_for_a_rate(OmegaConf.to_container(compose(["experiment=row_budget", "method=none"])))


def test_one_run_does_not_choose_alpha_either(capsys):
    with pytest.raises(SystemExit) as end:
        main(["run", "method=lora", *ALPHAS, "trainer.learning_rate=1e-3"])
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1
    assert said.startswith("rowsft: error: tune.alpha: the tuning stage of `rowsft sweep` chooses alpha")
