"""transformers' Trainer, set up so that every method gets the same examples in the same order, the same optimizer."""

import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import TrainerCallback

from rowsft.compat.liger import fused_loss_arguments
from rowsft.compat.trainer import OneDeviceArguments, OwnCheckpoints
from rowsft.config.settings import TrainerSettings
from rowsft.measure import StepClock
from rowsft.methods.optimizing import Optimizing
from rowsft.models.loading import recompute_activations
from rowsft.runner.checkpoints import Changes, CheckpointCallback
from rowsft.runner.device import run_device
from rowsft.runner.optimizers import optimizer_maker
from rowsft.runner.ranks import ALONE, Ranks
from rowsft.runner.schedule import data_order, learning_rate_factor, total_steps

# Arguments in several processes.
_OF_RANKS: dict[str, Any] = {
    # A loss that divides by tokens divides by those of all processes.
    "average_tokens_across_devices": True,
    # What no loss depends on, as a pooler, would otherwise stop the second step.
    "ddp_find_unused_parameters": True,
}


class TrainingDiverged(Exception):
    """The loss or a gradient stopped being a number."""


class OrderedTrainer(OwnCheckpoints):
    """A Trainer whose data come in the order given, whose optimizer is that of the settings, or the method's where it
    has one of its own, and which keeps its own curve.

    Its checkpoints hold what is trained and never the frozen base.
    """

    def __init__(
        self,
        settings: TrainerSettings,
        clock: StepClock,
        steps_per_epoch: float,
        on_point: Callable[[dict], None],
        optimizing: Optimizing,
        **kwargs,
    ):
        self.settings = settings
        self.optimizing = optimizing
        self.clock = clock
        self.steps_per_epoch = steps_per_epoch
        self.on_point = on_point
        # One dict a logged step: step, loss, grad_norm, learning_rate, examples seen so far.
        self.curve: list[dict] = []
        # What was evaluated since the last point, for the next one.
        self.validated: dict[str, float] = {}
        self.checkpoints: CheckpointCallback | None = None
        super().__init__(**kwargs)
        self.changes = Changes(cast(nn.Module, self.model))
        if optimizing.takes_part:
            self.add_callback(_AroundSteps(self))

    def write_trained(self, folder: Path) -> None:
        self.changes.write(folder)

    def read_trained(self, folder: Path) -> None:
        self.changes.read(folder)

    def not_written(self, error: Exception) -> None:
        assert self.checkpoints is not None, "they ask for checkpoints"
        self.checkpoints.failed(error)

    def checkpointing(self, callback: CheckpointCallback) -> None:
        """Write the checkpoints that `callback` asks for."""
        self.checkpoints = callback
        self.add_callback(callback)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            attached, settings = cast(nn.Module, model or self.model), self.settings
            make = optimizer_maker(settings)
            self.optimizer = self.optimizing.optimizer(attached, make, settings.learning_rate, settings.weight_decay)
        return self.optimizer

    def after_step(self, step: int) -> None:
        """Have the method do its work after a step, see `OptimizedMethod.after_step`."""
        assert self.optimizer is not None, "made before the first step"
        self.optimizing.after_step(cast(nn.Module, self.model), self.optimizer, step, self.state.max_steps)

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        if self.lr_scheduler is None:
            factor = learning_rate_factor(self.settings, num_training_steps, self.steps_per_epoch)
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.create_optimizer(), factor)
        return self.lr_scheduler

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        with self.clock.loading_data():
            return super().get_batch_samples(epoch_iterator, num_batches, device)

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        self.clock.count(inputs)
        return super().training_step(model, inputs, num_items_in_batch)

    def floating_point_ops(self, inputs) -> int:
        # Trainer's estimate walks over every parameter once a step; nothing here reads it.
        return 0

    def log(self, logs: dict, start_time: float | None = None) -> None:
        if "loss" not in logs:
            return
        examples = self.state.global_step * self.settings.batch_size * self.settings.gradient_accumulation
        point = {
            "step": self.state.global_step,
            "loss": logs["loss"],
            "grad_norm": logs.get("grad_norm"),
            "learning_rate": logs["learning_rate"],
            "examples": examples,
            **self.validated,
        }
        self.validated = {}
        self.curve.append(point)
        self.on_point(point)
        for name in ("loss", "grad_norm"):
            if point[name] is not None and not math.isfinite(point[name]):
                raise TrainingDiverged(
                    f"{name} is {point[name]} at step {point['step']} (trainer.learning_rate="
                    f"{self.settings.learning_rate}); expected a finite number; lower trainer.learning_rate"
                )


class _AroundSteps(TrainerCallback):
    """Lets the method do what it does before the first step and after each, while gradients are there."""

    def __init__(self, trainer: OrderedTrainer):
        self._trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        trainer = self._trainer
        model, optimizer = cast(nn.Module, trainer.model), cast(torch.optim.Optimizer, trainer.optimizer)
        trainer.optimizing.begin(model, optimizer, state.global_step, state.max_steps)

    def on_optimizer_step(self, args, state, control, **kwargs):
        # Under fp16 a step is left out where gradients have overflowed; nobody shall read those.
        if not self._trainer.accelerator.optimizer_step_was_skipped:
            # Counted once it is over.
            self._trainer.after_step(state.global_step + 1)


class _Clock(TrainerCallback):
    """Times the region from the first forward of an optimizer step to the end of the optimizer's update."""

    def __init__(self, clock: StepClock):
        self.clock = clock

    def on_step_begin(self, args, state, control, **kwargs):
        self.clock.start()

    def on_step_end(self, args, state, control, **kwargs):
        self.clock.stop()
        # The last step is on the curve whatever logging_steps is.
        control.should_log |= state.global_step >= state.max_steps


def build_trainer(
    model,
    encoded: list[dict],
    collator: Callable,
    settings: TrainerSettings,
    seed: int,
    clock: StepClock,
    on_point: Callable[[dict], None],
    scratch: Path,
    normalises_by_tokens: bool,
    ranks: Ranks = ALONE,
    optimizing: Optimizing | None = None,
) -> OrderedTrainer:
    """Put model, ordered data and settings into a Trainer.

    `encoded` is the training split in its own order; `normalises_by_tokens` says that the model's loss divides by the
    labelled tokens of the whole accumulated batch when it is told their number (causal language models do,
    classifiers do not, though their forward swallows the argument). ranks: each takes an equal share of every batch.
    optimizing: what the method says of its optimizer and its steps; None takes the optimizer of the settings.
    """
    steps = total_steps(len(encoded), settings)
    per_step = settings.batch_size * settings.gradient_accumulation
    ordered = [encoded[i] for i in data_order(len(encoded), steps * per_step, seed)]
    if settings.gradient_checkpointing:
        recompute_activations(model)
    device = run_device(settings)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    arguments = OneDeviceArguments(
        output_dir=str(scratch),
        max_steps=steps,
        per_device_train_batch_size=settings.batch_size // ranks.size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.autocast == "bf16",
        fp16=settings.autocast == "fp16",
        logging_steps=settings.logging_steps,
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        report_to=[],
        train_sampling_strategy="sequential",
        disable_tqdm=not sys.stderr.isatty(),
        remove_unused_columns=False,
        seed=seed,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type == "cuda",
        **_OF_RANKS if ranks.strategy else {},
        **fused_loss_arguments(model) if settings.fused_linear_cross_entropy else {},
    )
    trainer = _trainer_of(ranks)(
        settings=settings,
        clock=clock,
        steps_per_epoch=len(encoded) / per_step,
        on_point=on_point,
        optimizing=optimizing or Optimizing(),
        model=model,
        args=arguments,
        train_dataset=ordered,
        data_collator=collator,
        callbacks=[_Clock(clock)],
    )
    trainer.model_accepts_loss_kwargs = normalises_by_tokens
    return trainer


def _trainer_of(ranks: Ranks) -> Callable[..., OrderedTrainer]:
    if ranks.strategy is None:
        return OrderedTrainer
    from rowsft.runner.ranks_trainer import RanksTrainer, ShardedTrainer

    return partial(ShardedTrainer if ranks.is_sharded else RanksTrainer, ranks)
