"""transformers' Trainer, set up so that every method gets the same examples in the same order, the same optimizer."""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import torch
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments

from rowsft import batch as batches
from rowsft.config.devices import index_of
from rowsft.config.settings import TrainerSettings
from rowsft.errors import UserError
from rowsft.measure import StepClock
from rowsft.models.loading import recompute_activations


class TrainingDiverged(Exception):
    """The loss or a gradient stopped being a number."""


def total_steps(examples: int, settings: TrainerSettings) -> int:
    """Optimizer steps of the whole run: `steps`, or what `epochs` passes over `examples` take (rounded up)."""
    if settings.steps is not None:
        return settings.steps
    return math.ceil(settings.epochs * examples / (settings.batch_size * settings.gradient_accumulation))


def data_order(examples: int, needed: int, seed: int) -> list[int]:
    """Indices of `needed` training examples: shuffled passes over all `examples`, one after another.

    From a generator of its own, so the order depends on the seed alone and never on what a method drew before.
    """
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    while len(order) < needed:
        order += torch.randperm(examples, generator=generator).tolist()
    return order[:needed]


def learning_rate_factor(settings: TrainerSettings, steps: int, steps_per_epoch: float) -> Callable[[int], float]:
    """The multiplier of the learning rate at optimizer step 0 .. steps - 1.

    Warm-up rises from 1/(w+1) over w steps, so that no step is wasted at a rate of 0.
    """
    warmup = int(settings.warmup_ratio * steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = (step - warmup) / max(1, steps - warmup)
        if settings.scheduler == "linear":
            return max(0.0, 1.0 - done)
        if settings.scheduler == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
        if settings.scheduler == "step_epoch":
            return settings.scheduler_gamma ** int(step / steps_per_epoch)
        return 1.0

    return factor


class OrderedTrainer(Trainer):
    """A Trainer whose data come in the order given, whose optimizer is plain AdamW, and which keeps its own curve."""

    def __init__(
        self,
        settings: TrainerSettings,
        clock: StepClock,
        steps_per_epoch: float,
        on_point: Callable[[dict], None],
        **kwargs,
    ):
        self.settings = settings
        self.clock = clock
        self.steps_per_epoch = steps_per_epoch
        self.on_point = on_point
        # One dict a logged step: step, loss, grad_norm, learning_rate, examples seen so far.
        self.curve: list[dict] = []
        super().__init__(**kwargs)

    def _get_train_sampler(self, train_dataset=None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            trained = [p for p in (model or self.model).parameters() if p.requires_grad]
            # foreach's temporary copies of every parameter would be charged to full fine-tuning alone.
            on_gpu = trained[0].device.type == "cuda"
            self.optimizer = torch.optim.AdamW(
                trained,
                lr=self.settings.learning_rate,
                weight_decay=self.settings.weight_decay,
                fused=on_gpu,
                foreach=False,
            )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        if self.lr_scheduler is None:
            factor = learning_rate_factor(self.settings, num_training_steps, self.steps_per_epoch)
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
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
        }
        self.curve.append(point)
        self.on_point(point)
        for name in ("loss", "grad_norm"):
            if point[name] is not None and not math.isfinite(point[name]):
                raise TrainingDiverged(
                    f"{name} is {point[name]} at step {point['step']} (trainer.learning_rate="
                    f"{self.settings.learning_rate}); expected a finite number; lower trainer.learning_rate"
                )


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
) -> OrderedTrainer:
    """Put model, ordered data and settings into a Trainer.

    `encoded` is the training split in its own order; `normalises_by_tokens` says that the model's loss divides by the
    labelled tokens of the whole accumulated batch when it is told their number (causal language models do,
    classifiers do not, though their forward swallows the argument).
    """
    steps = total_steps(len(encoded), settings)
    per_step = settings.batch_size * settings.gradient_accumulation
    ordered = [encoded[i] for i in data_order(len(encoded), steps * per_step, seed)]
    if settings.gradient_checkpointing:
        recompute_activations(model)
    device = device_of(settings)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    arguments = OneDeviceArguments(
        output_dir=str(scratch),
        max_steps=steps,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.autocast == "bf16",
        fp16=settings.autocast == "fp16",
        logging_steps=settings.logging_steps,
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        report_to=[],
        disable_tqdm=not sys.stderr.isatty(),
        remove_unused_columns=False,
        seed=seed,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type == "cuda",
    )
    trainer = OrderedTrainer(
        settings=settings,
        clock=clock,
        steps_per_epoch=len(encoded) / per_step,
        on_point=on_point,
        model=model,
        args=arguments,
        train_dataset=ordered,
        data_collator=collator,
        callbacks=[_Clock(clock)],
    )
    trainer.model_accepts_loss_kwargs = normalises_by_tokens
    return trainer


def largest_batch(trainer: OrderedTrainer) -> list[dict]:
    """The largest training micro-batch: the one whose step sets the memory peak."""
    size, data = trainer.settings.batch_size, trainer.train_dataset
    return batches.largest_batch([data[first : first + size] for first in range(0, len(data), size)])


def extra_step(
    trainer: OrderedTrainer,
    batch: list[dict],
    enter: Callable[[str], None] = lambda phase: None,
    hold: Callable[[dict], None] = lambda inputs: None,
) -> None:
    """One more full optimizer step on `batch`, as the Trainer itself takes it. It changes the model: record first.

    enter: told when "forward", "backward" and "optimizer_step" begin: the next phase as soon as a backward returns.
    hold: shown what the model is given, on its device.
    """
    micro = [trainer.data_collator([dict(example) for example in batch])] * trainer.settings.gradient_accumulation
    tokens = trainer._get_num_items_in_batch(micro, trainer.args.device)
    trainer.current_gradient_accumulation_steps = len(micro)
    for number, inputs in enumerate(micro):
        enter("forward")
        with _tracking_passes(trainer, enter, "forward" if number + 1 < len(micro) else "optimizer_step", hold):
            # Trainer's own step, not the counting one: no clock runs here.
            Trainer.training_step(trainer, trainer.model_wrapped, dict(inputs), tokens)
    if trainer.settings.max_grad_norm > 0:
        trainer._clip_grad_norm(trainer.model_wrapped)
    trainer.optimizer.step()
    trainer.model_wrapped.zero_grad()


@contextmanager
def _tracking_passes(
    trainer: OrderedTrainer, enter: Callable[[str], None], after: str, hold: Callable[[dict], None]
) -> Iterator:
    """Inside the block `hold` and `enter` hear of the inputs and of the backward pass, which phase `after` follows."""
    prepare, backward = trainer._prepare_inputs, trainer.accelerator.backward

    def prepared(inputs: dict) -> dict:
        moved = prepare(inputs)
        hold(moved)
        return moved

    def marked(*args, **kwargs) -> None:
        enter("backward")
        backward(*args, **kwargs)
        enter(after)

    trainer._prepare_inputs, trainer.accelerator.backward = prepared, marked
    try:
        yield
    finally:
        # What the classes define shows again.
        del trainer._prepare_inputs, trainer.accelerator.backward


def device_of(settings: TrainerSettings) -> torch.device:
    """The one device that a run with these settings computes on: `auto` takes a GPU when there is one.

    Raises UserError where a GPU is asked for and it is not visible.
    """
    asked, index = settings.device, index_of(settings.device)
    if asked == "cpu" or (asked == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(f"trainer.device={asked}: no CUDA device is visible; use auto or cpu")
    if index >= torch.cuda.device_count():
        raise UserError(
            f"trainer.device={asked}: {torch.cuda.device_count()} CUDA devices are visible, counted from 0; "
            "choose one of them"
        )
    return torch.device("cuda", index)


class OneDeviceArguments(TrainingArguments):
    """transformers' arguments for one device: with several GPUs visible it would copy the model to each of them.

    The GPU is torch's current one, which whoever makes these arguments has set.
    """

    @cached_property
    def _setup_devices(self) -> torch.device:
        current = None if self.use_cpu else torch.cuda.current_device()
        device = super()._setup_devices
        if current is None:
            return device
        self._n_gpu = 1
        torch.cuda.set_device(current)
        return torch.device("cuda", current)
