"""Mirrors of a run on a dashboard. The store is the truth; a tracker may fail without anything being lost."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from rowsft.record import Attempt, State
from rowsft.store.attempt import state_of

# Configurations name it here.
from rowsft.tracking.wandb_tracker import WandbTracker

__all__ = ["NullTracker", "Tracker", "WandbTracker", "tracking"]


class Tracker(Protocol):
    """Where curves and final numbers are mirrored. The methods are called in this order and never raise.

    `log` is for the training loop, outside the region that a StepClock times, so that a tracker costs no step time.
    """

    def start(self, run_id: str, config: Mapping[str, Any], group: str) -> None:
        """Open one run. `run_id` is the store's id and the attempt, `<id>-<attempt>`; `group` the experiment's name."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to the curves at optimizer step `step`, which never decreases."""

    def show(self, attempt: Attempt, folder: Path) -> None:
        """Add what the attempt has recorded so far; its files lie in the run's `folder`."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """Set the run's final numbers."""

    def finish(self, state: State) -> None:
        """Close the run in one of the store's states ("done", "failed", ...). Calls after the first do nothing."""


@contextmanager
def tracking(tracker: Tracker, run_id: str, config: Mapping[str, Any], group: str) -> Iterator[Tracker]:
    """Start `tracker` and finish it whatever happens in the block.

    The state is "done", or after an exception the one that the store gives it, unless the block has called `finish`
    with a state of its own.
    """
    tracker.start(run_id, config, group)
    try:
        yield tracker
    except BaseException as error:
        tracker.finish(state_of(error))
        raise
    tracker.finish("done")


class NullTracker:
    """Tracks nothing and never imports W&B."""

    def start(self, run_id: str, config: Mapping[str, Any], group: str) -> None:
        pass

    def log(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def show(self, attempt: Attempt, folder: Path) -> None:
        pass

    def summary(self, values: Mapping[str, Any]) -> None:
        pass

    def finish(self, state: State) -> None:
        pass
