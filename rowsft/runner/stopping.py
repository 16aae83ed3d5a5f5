"""A stop that comes while a run trains waits for the end of its step, so that a checkpoint of it is written first."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class _Training:
    seconds: float
    stop: KeyboardInterrupt | None = None


_training: list[_Training] = []


@contextmanager
def waiting(seconds: float) -> Iterator[None]:
    """Have a stop that comes inside the block wait for the next checkpoint, but no longer than these seconds."""
    _training.append(_Training(seconds))
    try:
        yield
    finally:
        _training.pop()


def waits(stop: KeyboardInterrupt) -> float:
    """Return for how many seconds a stop that has come waits: until then `pending` gives it. 0: it does not wait."""
    if not _training or not _training[-1].seconds:
        return 0.0
    _training[-1].stop = stop
    return _training[-1].seconds


def pending() -> KeyboardInterrupt | None:
    """Return the stop that waits. Whoever has written a checkpoint raises it."""
    return _training[-1].stop if _training else None
