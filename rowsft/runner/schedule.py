"""How many steps a run takes, over which examples in which order, and at which learning rate."""

import math
from collections.abc import Callable

import torch

from rowsft.config.settings import TrainerSettings


def total_steps(examples: int, settings: TrainerSettings) -> int:
    """Return the optimizer steps of the run: `steps`, or what `epochs` passes over `examples` take (rounded up)."""
    if settings.steps is not None:
        return settings.steps
    assert settings.epochs is not None, "settings have steps or epochs"
    return math.ceil(settings.epochs * examples / (settings.batch_size * settings.gradient_accumulation))


def data_order(examples: int, needed: int, seed: int) -> list[int]:
    """Return the indices of `needed` training examples: shuffled passes over all `examples`, one after another.

    From a generator of its own, so the order depends on the seed alone and never on what a method drew before.
    """
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    while len(order) < needed:
        order += torch.randperm(examples, generator=generator).tolist()
    return order[:needed]


def learning_rate_factor(settings: TrainerSettings, steps: int, steps_per_epoch: float) -> Callable[[int], float]:
    """Return the multiplier of the learning rate at optimizer step 0 .. steps - 1.

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
