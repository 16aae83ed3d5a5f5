"""Seconds by phase of a job and by optimizer step."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import numpy as np
import torch

from rowsft.measure.device import device_kind, synchronize
from rowsft.record import DataSeconds, Seconds, StepSeconds

PHASES = tuple(field.name for field in fields(Seconds) if field.name != "total")


class PhaseClock:
    """Wall-clock seconds of each phase of a job. Phases do not nest; entering one again adds to its seconds.

    `phase_name` is the phase last entered: after an exception, the phase that raised it. `on_phase`, where it is set,
    is called with the name of every phase before its time begins. `clock` returns monotonic seconds.
    """

    def __init__(self, device: str | torch.device = "cpu", clock: Callable[[], float] = time.perf_counter):
        self.device = device
        self.phase_name: str | None = None
        self.on_phase: Callable[[str], object] | None = None
        self._clock = clock
        self._running = False
        self._seconds: dict[str, float] = {}
        self._begin = self._created = clock()
        self._earlier_total = 0.0

    def add(self, earlier: Seconds) -> None:
        """Count the seconds of an earlier process along, whose run this one goes on with."""
        for name in PHASES:
            if (seconds := getattr(earlier, name)) is not None:
                self._seconds[name] = self._seconds.get(name, 0.0) + seconds
        self._earlier_total += earlier.total or 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the block as `name`, one of PHASES. Raises ValueError on another name, RuntimeError inside a phase."""
        if name not in PHASES:
            raise ValueError(f"phase {name!r} is not one of {', '.join(PHASES)}")
        if self._running:
            raise RuntimeError(f"phase {name!r} started inside phase {self.phase_name!r}; phases do not nest")
        if self.on_phase is not None:
            self.on_phase(name)
        synchronize(self.device)
        self.phase_name, self._running = name, True
        self._begin = self._clock()
        try:
            yield
            # Not in `finally`: after a CUDA error it would raise a second one and hide the first.
            synchronize(self.device)
        finally:
            self._seconds = self._until_now()
            self._running = False

    def summary(self) -> Seconds:
        """Return the seconds of every phase (None if it was not entered) and `total`, those since creation."""
        return Seconds(**self._until_now(), total=self._earlier_total + self._clock() - self._created)

    def _until_now(self) -> dict[str, float]:
        if not self._running or self.phase_name is None:
            return self._seconds
        running = self._clock() - self._begin
        return {**self._seconds, self.phase_name: self._seconds.get(self.phase_name, 0.0) + running}


class StepClock:
    """Seconds, unpadded tokens and examples of every optimizer step, and the seconds that each waited for its data.

    Call `start` and `stop` around a step (Trainer's on_step_begin and on_step_end: data loading and logging fall
    outside), `count` for every batch inside it, and get its batches inside `loading_data`, before it. On a GPU a step
    is a pair of events on the current stream, resolved in `summary`: nothing waits for the device inside the loop. The
    first `warmup_steps` steps are left out of the statistics, also those after a restart (`resume`). `clock` returns
    monotonic seconds; on a GPU it times the data alone, which the host gets ready.
    """

    def __init__(
        self,
        warmup_steps: int,
        device: str | torch.device = "cpu",
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.warmup_steps = warmup_steps
        self._cuda = device_kind(device) == "cuda"
        self._device = device
        self._clock = clock
        self._begin: float | torch.cuda.Event | None = None
        self._steps: list[tuple] = []
        self._data_seconds: list[float] = []
        # One running sum each for the steps before and after warm-up: on a GPU they stay there, in constant memory.
        self._tokens: dict[bool, int | torch.Tensor] = {False: 0, True: 0}
        self._batches_counted = 0
        self._tokens_known = True
        self._examples = 0
        # What other processes have counted in the same steps, as `counts` gives it.
        self._beside: list[dict[str, Any]] = []
        # Of earlier processes: steps in all, and the seconds of those that count.
        self._steps_before = 0
        self._seconds_before: list[float] = []
        self._data_before: list[float] = []
        self._data_total_before = 0.0

    def state(self) -> dict[str, Any]:
        """Return all that was counted, as JSON, for the `resume` of another process. Not inside a step."""
        return {
            "steps": self._steps_before + len(self._steps),
            "seconds": self._timed_seconds(),
            "data_seconds": self._timed_data(),
            "data_total": self._data_total_before + sum(self._data_seconds),
            **self._all_counts(),
        }

    def counts(self) -> dict[str, Any]:
        """Return the tokens (before and after warm-up), examples and batches of this process. Not inside a step."""
        return {
            "tokens": [int(self._tokens[False]), int(self._tokens[True])],
            "tokens_known": self._tokens_known,
            "examples": self._examples,
            "batches": self._batches_counted,
        }

    def count_beside(self, counts: Sequence[Mapping[str, Any]]) -> None:
        """Count along what other processes have counted by now (their `counts`), in place of what they had before."""
        self._beside = [dict(other) for other in counts]

    def _all_counts(self) -> dict[str, Any]:
        every = [self.counts(), *self._beside]
        return {
            "tokens": [sum(numbers) for numbers in zip(*(one["tokens"] for one in every), strict=True)],
            "tokens_known": all(one["tokens_known"] for one in every),
            "examples": sum(one["examples"] for one in every),
            "batches": sum(one["batches"] for one in every),
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Count on from the `state` of an earlier process. Before the first step."""
        self._steps_before = state["steps"]
        self._seconds_before, self._data_before = list(state["seconds"]), list(state["data_seconds"])
        self._data_total_before = state["data_total"]
        self._tokens = dict(zip((False, True), state["tokens"], strict=True))
        self._tokens_known = state["tokens_known"]
        self._examples, self._batches_counted = state["examples"], state["batches"]

    def start(self) -> None:
        """Begin a step. Raises RuntimeError if one is running."""
        if self._begin is not None:
            raise RuntimeError("StepClock.start() while a step is running; call stop() first")
        self._begin = self._mark()

    def stop(self) -> None:
        """End the step. Raises RuntimeError if none is running."""
        if self._begin is None:
            raise RuntimeError("StepClock.stop() without start()")
        self._steps.append((self._begin, self._mark()))
        self._begin = None

    @contextmanager
    def loading_data(self) -> Iterator[None]:
        """The block gets the batches of the next step: reads, pads, sends to the device. RuntimeError inside a step."""
        if self._begin is not None:
            raise RuntimeError("StepClock.loading_data() inside a step; its time would count twice: call stop() first")
        begin = self._clock()
        yield
        self._data_seconds.append(self._clock() - begin)

    def count(self, batch: Mapping[str, torch.Tensor]) -> None:
        """Add a batch to the running step: tensors, examples first; attention_mask (examples, length) of 0 and 1.

        A batch without a two-dimensional mask makes every token count None, since its padding cannot be told.
        Raises RuntimeError outside a step.
        """
        if self._begin is None:
            raise RuntimeError("StepClock.count() outside a step; call start() first")
        self._batches_counted += 1
        self._examples += next(len(value) for value in batch.values() if torch.is_tensor(value) and value.ndim)
        mask = batch.get("attention_mask")
        if mask is None or mask.ndim != 2:
            self._tokens_known = False
            return
        timed = len(self._steps) >= self.warmup_steps
        self._tokens[timed] = self._tokens[timed] + mask.sum(dtype=torch.int64)

    def summary(self) -> dict[str, Any]:
        """Return the record's step_seconds, data_seconds, tokens_per_second, train_tokens, train_examples and steps.

        step_seconds and data_seconds hold median, p25, p75, p95 (linear interpolation), min, max and mean in seconds
        over the steps after warm-up, None if there are none; data_seconds has the `total` of all steps too, and is None
        if no data were loaded under the clock. tokens_per_second counts unpadded tokens of the steps after warm-up over
        their summed seconds, train_tokens and train_examples those of all steps.
        """
        seconds = self._timed_seconds()
        timed = len(seconds) > 0
        every = self._all_counts()
        counted = every["batches"] > 0
        tokens = dict(zip((False, True), every["tokens"], strict=True)) if counted and every["tokens_known"] else None
        return {
            "step_seconds": StepSeconds(
                **_statistics(seconds), warmup_steps=self.warmup_steps, timed_steps=len(seconds)
            ),
            "data_seconds": self._waited(),
            "tokens_per_second": tokens[True] / sum(seconds) if tokens and timed else None,
            "train_tokens": tokens[False] + tokens[True] if tokens else None,
            "train_examples": every["examples"] if counted else None,
            "steps": self._steps_before + len(self._steps),
        }

    def _waited(self) -> DataSeconds | None:
        total = self._data_total_before + sum(self._data_seconds)
        if not self._data_seconds and not self._data_total_before:
            return None
        return DataSeconds(**_statistics(self._timed_data()), total=total)

    def _timed_seconds(self) -> list[float]:
        return self._seconds_before + self._seconds()[self.warmup_steps :]

    def _timed_data(self) -> list[float]:
        return self._data_before + self._data_seconds[self.warmup_steps :]

    def _mark(self) -> "float | torch.cuda.Event":
        if not self._cuda:
            return self._clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _seconds(self) -> list[float]:
        if not self._cuda:
            return [end - begin for begin, end in self._steps]
        synchronize(self._device)
        return [begin.elapsed_time(end) / 1000 for begin, end in self._steps]


def _statistics(seconds: list[float]) -> dict[str, float | None]:
    names = ("min", "p25", "median", "p75", "p95", "max")
    if not seconds:
        return dict.fromkeys((*names, "mean"))
    values = np.percentile(seconds, (0, 25, 50, 75, 95, 100))
    return {**{name: float(value) for name, value in zip(names, values, strict=True)}, "mean": float(np.mean(seconds))}
