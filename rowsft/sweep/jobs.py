"""A sweep's jobs before the first starts: what tells them apart, which are the same run, which are done already."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rowsft.config.compose import compose
from rowsft.config.compose_many import ManyComposer
from rowsft.config.run_spec import RunSpec, run_spec
from rowsft.errors import UserError
from rowsft.output import redact
from rowsft.store.places import Places

#: Seconds between two lines that say how far it is.
_EVERY_SECONDS = 5.0


@dataclass(frozen=True)
class SweepJob:
    """One job. number: from 1. label: the overrides that not all jobs share. done: a finished attempt is recorded.

    same_as: the number of the earlier job that is the same run, None where there is none.
    """

    number: int
    overrides: list[str]
    spec: RunSpec
    label: str
    done: bool
    same_as: int | None = None


class JobResolver:
    """Resolves the jobs of one sweep; what it composed stays for the next batch of them."""

    def __init__(self, say: Callable[[str], None]):
        self.say = say
        self._places: dict[str, Places] = {}
        self._composed_by_hydra: set[str] = set()

    @cached_property
    def _composer(self) -> ManyComposer:
        return ManyComposer()

    def resolve(self, jobs: Sequence[Sequence[str]], rerun: bool) -> list[SweepJob]:
        """The jobs in their order. Raises UserError for the first whose configuration is wrong.

        A job with values that no earlier one had is composed by Hydra, checks and all, unless it is done: a wrong value
        is found before the first job has cost an hour.
        """
        # Every batch sees what the ones before have recorded.
        self._places.clear()
        labels, reported = _labels(jobs), time.monotonic()
        planned: list[SweepJob] = []
        first_of: dict[str, int] = {}
        for number, overrides in enumerate(jobs, start=1):
            if time.monotonic() - reported > _EVERY_SECONDS:
                reported = time.monotonic()
                self.say(f"{number - 1} of {len(jobs)} jobs looked up")
            spec, done = self._one(list(overrides), rerun)
            earlier = first_of.setdefault(str(spec.folder), number)
            label = labels[number - 1] or spec.label
            same_as = earlier if earlier != number else None
            planned.append(SweepJob(number, list(overrides), spec, label, done, same_as))
        return planned

    def experiments(self, job: SweepJob) -> dict | None:
        """The record of a job that is done, as it was when the job was planned: its experiments and their notes."""
        return self._places[str(job.spec.store)].finished.get(job.spec.run_id)

    def _one(self, overrides: list[str], rerun: bool) -> tuple[RunSpec, bool]:
        config: Any = self._composer.compose(overrides)
        if config is not None:
            try:
                spec = run_spec(config, self._place(config))
            except (UserError, LookupError, TypeError, AttributeError):
                config = None
        if config is not None:
            done = self._is_done(spec)
            if (done and not rerun) or self._composed_by_hydra.issuperset(overrides):
                return spec, done
        self._composed_by_hydra.update(overrides)
        config = compose(overrides)
        spec = run_spec(config, self._place(config))
        return spec, self._is_done(spec)

    def _is_done(self, spec: RunSpec) -> bool:
        known = self._places[str(spec.store)].finished.get(spec.run_id)
        return known is not None and (not spec.measures or known["is_alone"])

    def _place(self, config: Mapping[str, Any]) -> Places:
        store = str(Path(config["store"]))
        if store not in self._places:
            self._places[store] = Places(store, listed=True)
        return self._places[store]


def _labels(jobs: Sequence[Sequence[str]]) -> list[str]:
    """For each job its overrides without those that every job has."""
    common = set(jobs[0]).intersection(*jobs) if jobs else set()
    shown = {text: redact.override(text) for overrides in jobs for text in set(overrides) - common}
    return [" ".join(shown[text] for text in overrides if text not in common) for overrides in jobs]
