"""An attempt's step times and memory as they were measured best: alone, where they were measured so again."""

from rowsft.record.memory import Memory, PhaseMemory
from rowsft.record.parts import Alone, Attempt


def as_measured(attempt: Attempt) -> Attempt:
    """Return the attempt with what `measure=alone` has measured in place of what was measured beside other jobs.

    Wall-clock seconds, curve and metrics stay: they are those of the training.
    """
    alone = attempt.alone
    if alone == Alone():
        return attempt
    measured = {
        "step_seconds": alone.step_seconds,
        "data_seconds": alone.data_seconds,
        "tokens_per_second": alone.tokens_per_second,
        "concurrent_jobs": alone.concurrent_jobs,
    }
    return attempt.changed(memory=_memory(attempt.memory, alone.memory), **measured)


def is_alone(result: Attempt) -> bool:
    """Return whether the step times and memory of `as_measured` were taken with no other job beside it."""
    return (result.concurrent_jobs or 1) == 1 or (result.alone or Alone()) != Alone()


def _memory(before: Memory, alone: Memory) -> Memory:
    phases = {name: getattr(alone, name) for name in ("load", "train", "evaluate")}
    measured = {name: phase for name, phase in phases.items() if phase != PhaseMemory()}
    return before.changed(kind=alone.kind, ledger={**before.ledger, **alone.ledger}, **measured)
