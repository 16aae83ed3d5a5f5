"""The tuning stage of a sweep: a grid of learning rates for each of its settings, before the sweep's own runs.

Methods that have an alpha may try several, each with a grid of rates of its own.

Rounds of jobs go to whatever launches jobs; after each, `rowsft.rates.search` says from the records alone what is
tried next. A stage that is stopped and asked for again finds its runs done, and comes to the same rates.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from rowsft.config.tune import (
    LEARNING_RATE,
    asks_for_a_rate,
    asks_for_an_alpha,
    named_alpha,
    named_rate,
    tune_settings,
    with_alpha,
)
from rowsft.errors import UserError, shortened
from rowsft.output import redact
from rowsft.output.quantities import text
from rowsft.rates import FAILED, Grid, Search, Trial, experiment_of_grid, grid_of, in_words, search
from rowsft.report.settings import under
from rowsft.report.tuning import says_something, validation_score
from rowsft.store.record import Record, UnreadableRecord, read_record
from rowsft.sweep.jobs import SweepJob

Jobs = list[list[str]]
#: What makes a run one of a grid: it is scored on validation alone, and its memory is not asked for.
_OF_A_GRID = (
    "trainer.evaluate=[validation]",
    "trainer.memory_probe_steps=0",
    "demonstration=null",
    "fairness=null",
    "measure=null",
)


@dataclass
class Setting:
    """All jobs of a sweep that differ in the seed alone, and the grid that chooses their rate and alpha.

    base: their overrides without the seed. scores: of the trials so far. lacking: why there is no choice.
    """

    base: list[str]
    jobs: list[SweepJob]
    grid: Grid
    scores: dict[Trial, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    lacking: str | None = None

    @property
    def measures(self) -> bool:
        """Whether its runs are to be measured again, alone: nothing is trained then, no grid either."""
        return self.jobs[0].spec.measures

    @property
    def search(self) -> Search:
        """How far the choice is."""
        return search(self.grid, self.scores)


@dataclass
class Tuned:
    """What a stage leaves: the sweep's jobs at their rates, and those of settings without one, each with the reason."""

    jobs: Jobs
    left_out: list[tuple[list[str], str]]


@dataclass
class Stage:
    """One sweep's tuning. resolve: jobs -> what they will run as. launch: runs jobs to their end. say: tells a line."""

    resolve: Callable[[Jobs], Sequence[SweepJob]]
    launch: Callable[[Jobs], object]
    say: Callable[[str], None]

    def run(self, jobs: Jobs) -> Tuned:
        """Tune the jobs whose configuration asks for it; the others come back as they are.

        Raises UserError where the sweep names rates or alphas itself, where none of its methods has the alpha that is
        to be tuned, and for tuning seeds that are the sweep's own.
        """
        planned = self.resolve(jobs)
        tuned = [job for job in planned if _asks(job)]
        if not tuned:
            return Tuned(jobs, [])
        _check_alpha(tuned)
        seeds = _seeds(tuned)
        settings = _settings(tuned)
        rounds = 0
        while wanted := [(one, trial) for one in settings if not one.lacking for trial in one.search.wanted]:
            rounds += 1
            self._round(wanted, seeds, f"tuning, round {rounds}")
        return self._chosen(planned, settings, seeds)

    def _round(self, wanted: list[tuple[Setting, Trial]], seeds: list[int], title: str) -> None:
        """Run all that is wanted, of all settings together, and read the scores."""
        runs = [(one, trial, _grid_job(one, trial, seed)) for one, trial in wanted for seed in seeds]
        jobs = [overrides for *_, overrides in runs]
        settings = len({id(one) for one, _ in wanted})
        self.say(f"{title}: {len(jobs)} runs on validation for {settings} setting{'s' * (settings != 1)}")
        planned = self.resolve(jobs)
        if launched := [overrides for one, _, overrides in runs if not one.measures]:
            self.launch(launched)
        found: dict[tuple[int, Trial], list[float]] = {}
        for (one, trial, _), job in zip(runs, planned, strict=True):
            record = _record(job)
            score = _score(record)
            if score is None:
                one.lacking = one.lacking or _why(one, trial, job, record)
            elif record is not None:
                one.seconds[record.id] = (record.result.seconds.total or 0) if record.result else 0
            found.setdefault((id(one), trial), []).append(FAILED if score is None else score)
        for one, trial in wanted:
            one.scores[trial] = fmean(found[id(one), trial])

    def _chosen(self, planned: Sequence[SweepJob], settings: list[Setting], seeds: list[int]) -> Tuned:
        """Say what each setting's grid came to, and give its jobs their rate and alpha."""
        best_of: dict[int, Trial] = {}
        left_out = []
        for one in settings:
            name, found = _name(one, settings), one.search
            if one.lacking is None and found.best is None:
                one.lacking = f"failed at every rate ({_listed(one.grid.rates)})"
                one.lacking += f" and alpha ({_listed(one.grid.alphas)})" if one.grid.alphas else ""
            if one.lacking is not None or found.best is None:
                left_out += [(job.overrides, f"{name}: left out, no learning rate: {one.lacking}") for job in one.jobs]
                continue
            best_of |= {job.number: found.best for job in one.jobs}
            alpha = "" if found.best.alpha is None else f"alpha {found.best.alpha:g}, "
            self.say(
                f"{name}: {alpha}learning rate {found.best.rate:g} of {in_words(one.grid, found)}, {_minutes(one)}"
            )
        out = {id(overrides) for overrides, _ in left_out}
        jobs = [
            _at_best(job, best_of[job.number], seeds) if job.number in best_of else job.overrides
            for job in planned
            if id(job.overrides) not in out
        ]
        return Tuned(jobs, left_out)


def _asks(job: SweepJob) -> bool:
    """Whether a job's rate is to be tuned: a grid is given, and the method reads the rate."""
    if not asks_for_a_rate(job.spec.config):
        return False
    if (given := named_rate(job.overrides)) is not None:
        none = "tune.lr=null tune.alpha=null" if job.spec.config["tune"].get("alpha") else "tune.lr=null"
        raise UserError(f"{given}: tune.lr chooses the rates; leave it out, or set {none} to name rates yourself")
    if asks_for_an_alpha(job.spec.config) and (given := named_alpha(job.overrides)) is not None:
        raise UserError(f"{given}: tune.alpha chooses alpha; leave it out, or set tune.alpha=null to name it yourself")
    return True


def _check_alpha(jobs: Sequence[SweepJob]) -> None:
    """Raise UserError where alphas are to be tried, and no method has one."""
    asked = next((alphas for job in jobs if (alphas := job.spec.config["tune"].get("alpha"))), None)
    if asked and not any(asks_for_an_alpha(job.spec.config) for job in jobs):
        methods = ", ".join(sorted({job.spec.config["method"]["name"] for job in jobs}))
        raise UserError(
            f"tune.alpha={shortened(asked)}: none of the sweep's methods has method.alpha ({shortened(methods)}); "
            "expected one that has, such as lora; set tune.alpha=null to tune their rates alone"
        )


def _seeds(jobs: Sequence[SweepJob]) -> list[int]:
    """Return the tuning seeds. Raises UserError where one of them is the sweep's own."""
    own = {job.spec.config["seed"] for job in jobs}
    asked = {tuple(tune_settings(job.spec.config["tune"]).seeds or ()) for job in jobs}
    if len(asked) > 1:
        raise UserError(f"tune.seeds: {sorted(map(list, asked))} in one sweep; expected the same for all of its jobs")
    free = next(seed for seed in range(len(own) + 1) if seed not in own)
    seeds = list(asked.pop()) or [free]
    if both := sorted(own & set(seeds)):
        raise UserError(
            f"tune.seeds={shortened(seeds)}: {both[0]} is one of the sweep's own seeds, on which the chosen rate is "
            f"judged; expected others, such as [{free}]"
        )
    return seeds


def _settings(jobs: Sequence[SweepJob]) -> list[Setting]:
    members: dict[tuple[str, ...], list[SweepJob]] = {}
    for job in jobs:
        members.setdefault(tuple(_without(job.overrides, ("seed",))), []).append(job)
    return [Setting(list(base), own, _grid(own[0].spec.config)) for base, own in members.items()]


def _grid(config: Mapping[str, Any]) -> Grid:
    trainer = config["trainer"]
    asked = config["tune"].get("halving")
    steps = asked.get("steps") if isinstance(asked, Mapping) else None
    if steps and trainer["steps"] is not None and max(steps) >= trainer["steps"]:
        raise UserError(
            f"tune.halving.steps={shortened(steps)}: expected fewer steps than trainer.steps={trainer['steps']}, the "
            "length of the runs that the rate is for"
        )
    return grid_of(config["tune"], trainer, asks_for_an_alpha(config))


def _grid_job(one: Setting, trial: Trial, seed: int) -> list[str]:
    """Return the overrides of one run of the grid."""
    name = experiment_of_grid(one.jobs[0].spec.config["experiment_name"])
    length = {} if trial.rung is None else one.grid.rungs[trial.rung]
    own = [
        *(f"trainer.{key}={text(value)}" for key, value in length.items()),
        f"{LEARNING_RATE}={trial.rate!r}",
        *with_alpha(one.jobs[0].spec.config, trial.alpha),
        f"seed={seed}",
        f"experiment_name='{name}'",
        *_OF_A_GRID,
        "tune.lr=null",
        "tune.alpha=null",
    ]
    return [*_without(one.base, ("tune", *map(key_of, own))), *own]


def _at_best(job: SweepJob, best: Trial, seeds: list[int]) -> list[str]:
    """Return a job's overrides with its rate and alpha; the seeds that it was tuned with are for the record."""
    return [
        *_without(job.overrides, ("tune.seeds",)),
        f"{LEARNING_RATE}={best.rate!r}",
        *with_alpha(job.spec.config, best.alpha),
        f"tune.seeds=[{','.join(map(str, seeds))}]",
    ]


def key_of(override: str) -> str:
    """Return the key that an override sets."""
    return override.partition("=")[0].lstrip("+~")


def _without(overrides: Sequence[str], keys: Sequence[str]) -> list[str]:
    return [one for one in overrides if not under(key_of(one), keys)]


def _record(job: SweepJob) -> Record | None:
    try:
        return read_record(job.spec.folder)
    except (UnreadableRecord, UserError):
        return None


def _score(record: Record | None) -> float | None:
    """Return the score of a run; None where it says nothing of its rate."""
    if record is None or not says_something(record):
        return None
    score = validation_score(record)
    if score is None:
        raise UserError(
            f"run {record.id} has no {record.result and record.result.primary_metric} on validation; tune.lr needs a "
            "task that gives its primary metric there: set tune.lr=null"
        )
    return score


def _why(one: Setting, trial: Trial, job: SweepJob, record: Record | None) -> str:
    at = f"{trial.rate:g}" + ("" if trial.alpha is None else f" and alpha {trial.alpha:g}")
    if one.measures:
        return f"the run at {at} is not done, and measure=alone runs none; run the sweep without it first"
    if record is None:
        return f"the run at {at} was refused or left no record, see above"
    return f"the run at {at} has no result (run {record.id}: {record.state}); the same sweep tries it again"


def _name(one: Setting, settings: list[Setting]) -> str:
    shared = set(settings[0].base).intersection(*(other.base for other in settings)) if len(settings) > 1 else set()
    own = [redact.override(part) for part in one.base if part not in shared]
    return f"tuned: {shortened(' '.join(own) or one.jobs[0].spec.config['method']['name'], 200)}"


def _listed(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


def _minutes(one: Setting) -> str:
    return f"{sum(one.seconds.values()) / 60:.1f} minutes of computing"
