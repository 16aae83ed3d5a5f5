"""The validation split evaluated now and then while a run trains (`trainer.evaluate_every`), as points of its curve."""

import time
from collections.abc import Callable, Mapping

import torch
from transformers import TrainerCallback

from rowsft import measure
from rowsft.runner.trainer import OrderedTrainer


class Validation(TrainerCallback):
    """Evaluates after every so many steps and after the last, between two steps: no clock of a step sees it.

    evaluate: returns the metrics by name. What it draws from torch's random streams is put back, and the memory that it
    takes is no part of the peaks around it. seconds: what it has taken so far.
    """

    def __init__(
        self,
        every: int,
        evaluate: Callable[[], Mapping[str, float]],
        trainer: OrderedTrainer,
        device: torch.device,
        seconds: float = 0.0,
    ):
        self._every, self._evaluate, self._trainer, self._device = every, evaluate, trainer, device
        self.seconds = seconds

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self._every and state.global_step < state.max_steps:
            return
        begin = time.monotonic()
        gpus = [self._device] if self._device.type == "cuda" else []
        with measure.leaving_out(self._device), torch.random.fork_rng(gpus):
            metrics = self._evaluate()
        self._trainer.validated = {f"validation_{name}": value for name, value in metrics.items()}
        control.should_log = True
        self.seconds += time.monotonic() - begin
