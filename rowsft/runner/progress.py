"""A running run tells how far it is, between its steps and at most once a second, so that no clock sees it."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from transformers import TrainerCallback

from rowsft.measure import peak_so_far
from rowsft.runner.trainer import OrderedTrainer
from rowsft.store import progress

_EVERY_SECONDS = 1.0


class ProgressFile:
    """Keeps the progress file of an attempt. Where it cannot be written it is given up: no run fails for it."""

    def __init__(self, attempt: Path, device: torch.device, clock: Callable[[], float] = time.monotonic):
        self._attempt: Path | None = attempt
        self._device = device
        self._clock = clock
        self._now = progress.Progress("")
        self._written = clock()
        self._began: tuple[int, float] | None = None

    def enter(self, phase: str) -> None:
        """Say that a phase begins."""
        self._now, self._began = replace(self._now, phase=phase, left_seconds=None), None
        self._write()

    def step(self, step: int, steps: int, loss: float | None) -> None:
        """Say that a training step is done. Call it between steps."""
        now = self._clock()
        # The first step of a process takes longer than all others.
        first, began = self._began = self._began or (step, now)
        if now - self._written < _EVERY_SECONDS and step < steps:
            return
        left = (now - began) / (step - first) * (steps - step) if step > first else None
        self._now = replace(self._now, step=step, steps=steps, loss=loss, left_seconds=left)
        self._write()

    def _write(self) -> None:
        if self._attempt is None:
            return
        peak_bytes, kind = peak_so_far(self._device)
        # The mark is set back as a phase begins.
        most = max(peak_bytes or 0, self._now.peak_bytes or 0) or None
        self._now = replace(self._now, peak_bytes=most, peak=kind)
        try:
            progress.write(self._attempt, self._now)
        except OSError:
            self._attempt = None
        self._written = self._clock()


class StepProgress(TrainerCallback):
    """Tells a progress file of every step, after the callbacks that came before it: the clock has stopped by then."""

    def __init__(self, file: ProgressFile, trainer: OrderedTrainer):
        self._file = file
        self._trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        curve = self._trainer.curve
        self._file.step(state.global_step, state.max_steps, curve[-1]["loss"] if curve else None)
