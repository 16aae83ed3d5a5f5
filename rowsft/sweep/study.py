"""A study of a search (Optuna's): its trials are jobs of a sweep, scored on the validation split by their records."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from omegaconf import OmegaConf

from rowsft.config.overrides import swept_values
from rowsft.errors import UserError, shortened
from rowsft.output import redact
from rowsft.report.settings import primary
from rowsft.store import Record, Store
from rowsft.sweep import due, under_way
from rowsft.sweep.jobs import SweepJob

#: A choice by the test split would make its numbers worthless, so no trial evaluates it.
EVALUATE = "trainer.evaluate=[validation]"
_KEY = "trainer.evaluate"


def check_settings(settings: dict[str, Any]) -> None:
    """Raise UserError for keys of hydra.sweeper that neither Optuna nor its plugin says in words what is wrong with."""
    for key in ("n_trials", "n_jobs"):
        if not isinstance(settings[key], int) or settings[key] < 1:
            raise UserError(f"hydra.sweeper.{key}={settings[key]}: expected a whole number above 0")
    if not isinstance(settings["params"], Mapping | None):
        raise UserError(
            f"hydra.sweeper.params={settings['params']}: expected null or ranges by key, such as "
            "{trainer.learning_rate: 'tag(log,interval(1e-5,1e-2))'}"
        )


@dataclass(frozen=True)
class Trial:
    """A trial that is over. score: larger is better, -inf of a run that failed, None of one that was stopped."""

    overrides: list[str]
    run_id: str
    score: float | None
    value: float | None
    metric: str


class Study:
    """Stands between a search and the launcher: the search is given scores, the sweep exit codes.

    A score is the primary metric on validation, its sign turned where lower is better: which it is, the task says.
    """

    def __init__(self, inner: Any, arguments: Sequence[str]):
        self._inner = inner
        self.trials: list[Trial] = []
        self.returns: list[JobReturn] = []
        parsed = OverridesParser.create().parse_overrides(list(arguments))
        self._searched = {override.get_key_element() for override in parsed if override.is_sweep_override()}
        if not self._searched:
            raise UserError("hydra/sweeper=optuna: nothing to search; give a range, KEY='tag(log,interval(1e-5,1e-2))'")
        for text in arguments:
            if text.lstrip("+").startswith(f"{_KEY}="):
                _, values = swept_values(text)
                if [value.strip("[] ") for value in values] != ["validation"]:
                    raise UserError(f"{shortened(text)}: a study is scored on validation alone; leave {_KEY} out")

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Run a batch of trials; the value of each is its score."""
        jobs = [[*(text for text in given if not text.startswith(f"{_KEY}=")), EVALUATE] for given in job_overrides]
        scored = []
        for job, returned in zip(due.check(jobs), self._inner.launch(jobs, initial_job_idx), strict=True):
            code = JobReturn(overrides=job.overrides, status=returned.status)
            code.return_value = returned.return_value
            self.returns.append(code)
            trial = _trial(job, list(job_overrides[job.number - 1]))
            self.trials.append(trial)
            shown = "no score" if trial.value is None else f"validation {trial.metric} {trial.value:.6g}"
            under_way.say(f"trial {len(self.trials)}: {' '.join(self._chosen(trial))}: {shown}", "dim")
            returned.return_value = trial.score
            scored.append(returned)
        return scored

    def best(self) -> Trial | None:
        """Return the trial with the best score; None where none has one."""
        scored = [trial for trial in self.trials if trial.score is not None and math.isfinite(trial.score)]
        return max(scored, key=lambda trial: trial.score or 0.0, default=None)

    def conclude(self, file: Path, before: list[str] | None = None) -> None:
        """Say which trial is the best, and write it down in the place of what the search itself has written.

        before: the overrides of the best trial that the study had from earlier calls.
        """
        if before is not None:
            (job,) = under_way.sweep.resolver.resolve([[*before, EVALUATE]], False)
            # In front: of equal ones the first is the best.
            self.trials.insert(0, _trial(job, before))
        best = self.best()
        if best is None:
            under_way.say("best: no trial has a score", "yellow")
            file.unlink(missing_ok=True)
            return
        chosen = self._chosen(best)
        under_way.say(
            f"best: {' '.join(chosen)}: validation {best.metric} {best.value:.6g} (run {best.run_id})", "bold"
        )
        held = {"best": chosen, "metric": best.metric, "split": "validation", "value": best.value, "run": best.run_id}
        OmegaConf.save(OmegaConf.create(redact.config(held)), file)

    def _chosen(self, trial: Trial) -> list[str]:
        """Return what the search has set."""
        return [redact.override(text) for text in trial.overrides if text.partition("=")[0] in self._searched]


def _trial(job: SweepJob, overrides: list[str]) -> Trial:
    try:
        record = Store(job.spec.store).get(job.spec.run_id)
    except UserError:
        # Bad input: nothing has run.
        return Trial(overrides, job.spec.run_id, -math.inf, None, "")
    value, score = _value(record), None
    if record.result is not None and value is not None:
        score = value if record.result.higher_is_better else -value
    elif record.result is not None or record.state in ("failed", "oom"):
        score = -math.inf
    metric = (record.result.primary_metric if record.result is not None else None) or ""
    return Trial(overrides, job.spec.run_id, score, value, metric)


def _value(record: Record) -> float | None:
    return primary(record.result, "validation") if record.result is not None else None
