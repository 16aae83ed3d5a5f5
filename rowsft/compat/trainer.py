"""What is used of transformers' Trainer beyond its published interface.

Checked in transformers 5.4 to 5.23 with accelerate 1.10 to 1.15.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments


def labelled_tokens(trainer: Trainer, batches: list[dict[str, Any]]) -> Tensor | int | None:
    """Return what a step divides the loss of its accumulated batches by; None where every batch has its own mean."""
    return trainer._get_num_items_in_batch(batches, trainer.args.device)


def clip_gradients(trainer: Trainer) -> None:
    """Clip the gradients' norm as a step does."""
    trainer._clip_grad_norm(trainer.model_wrapped)


@contextmanager
def watched(trainer: Trainer, on_inputs: Callable[[dict], None], before: Callable, after: Callable) -> Iterator[None]:
    """Inside the block `on_inputs` is shown a step's inputs on their device; the others run around its backward."""
    prepare, backward = trainer._prepare_inputs, trainer.accelerator.backward

    def prepared(inputs: dict) -> dict:
        moved = prepare(inputs)
        on_inputs(moved)
        return moved

    def marked(*args, **kwargs) -> None:
        before()
        backward(*args, **kwargs)
        after()

    vars(trainer)["_prepare_inputs"], vars(trainer.accelerator)["backward"] = prepared, marked
    try:
        yield
    finally:
        # What the classes define shows again.
        del trainer._prepare_inputs, trainer.accelerator.backward


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
