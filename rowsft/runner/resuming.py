"""Going on with a run that was stopped: its last checkpoint found, checked against the model, and counted along."""

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rowsft.errors import UserError
from rowsft.record import Attempt, PhaseMemory, Resumed, Seconds, plain
from rowsft.runner.checkpoints import RunState
from rowsft.store import Record
from rowsft.store.checkpoints import of_run

if TYPE_CHECKING:
    from rowsft.runner.context import Job

# Packages whose versions decide what a step computes.
_PACKAGES = ("torch", "transformers", "peft", "rowsft")


@dataclass(frozen=True)
class Resumption:
    """The checkpoint that a run goes on from, and the attempt that wrote it, as it is recorded."""

    folder: Path
    state: RunState
    attempt: Attempt

    @property
    def note(self) -> Resumed:
        """What the record says of it."""
        times = (self.attempt.resumed.times or 0) + 1
        return Resumed(attempt=self.attempt.attempt, step=self.state.step, times=times)


def last_checkpoint(record: Record) -> Resumption | None:
    """Return the latest whole checkpoint of the run's unfinished attempts; None where it has to start anew."""
    attempts = {f"attempt-{attempt.attempt}": attempt for attempt in record.attempts}
    done = record.result.attempt if record.result else 0
    for folder in of_run(record.folder):
        attempt = attempts.get(folder.parent.name)
        if attempt is None or attempt.attempt <= done:
            continue
        if (state := RunState.read(folder)) is not None:
            return Resumption(folder, state, attempt)
        print(f"rowsft: warning: {folder} is damaged; an earlier checkpoint or none is taken", file=sys.stderr)
    return None


def begin(job: "Job", resumption: Resumption) -> None:
    """Enter in the new attempt that it goes on from a checkpoint, and the seconds that the earlier process has used."""
    earlier, state = resumption.attempt, resumption.state
    job.resumption = resumption
    job.clock.add(_seconds(state.seconds))
    job.attempt.update(resumed=resumption.note)
    job.say(f"going on from step {state.step} of attempt {earlier.attempt}")
    then, now = earlier.environment.packages, job.attempt.fields.environment.packages
    for name in _PACKAGES:
        if then.get(name) != now.get(name):
            job.say(f"  warning: begun with {name} {then.get(name)}, goes on with {now.get(name)}: results may differ")


def selected(job: "Job", resumption: Resumption) -> None:
    """Take over what selecting was measured at, where that was done before and not repeated now."""
    earlier = resumption.attempt
    known: dict[str, Any] = {"scores_from_cache": earlier.scores_from_cache}
    if earlier.warm_head.steps is not None:
        known["warm_head"] = earlier.warm_head
    job.attempt.update(**known)
    if earlier.memory.select != PhaseMemory():
        job.memory.enter("select", earlier.memory.select)
    if "select" in earlier.memory.ledger:
        job.memory.enter_moment("select", earlier.memory.ledger["select"])


def check_same(resumption: Resumption, digest: str) -> None:
    """Raise UserError where this process trains other parameters, or other rows, than the checkpoint's did."""
    if resumption.state.digest != digest:
        raise UserError(
            f"{resumption.folder}: this process would train other rows or parameters than the run did at its start, so "
            "it cannot go on from there; the same command again starts it anew"
        )


def larger(memory: PhaseMemory, peaks: dict[str, int]) -> PhaseMemory:
    """Return the memory of a phase that went on in this process, each peak the larger of both processes'."""
    present = {name: getattr(memory, name) for name in peaks}
    return memory.changed(**{name: max(peaks[name], present[name] or 0) for name in peaks})


def _seconds(held: dict[str, Any]) -> Seconds:
    names = {field.name for field in fields(Seconds)}
    return Seconds(**{name: value for name, value in held.items() if name in names})


def as_json(seconds: Seconds) -> dict[str, Any]:
    """Return seconds as a checkpoint holds them."""
    return plain(seconds) or {}
