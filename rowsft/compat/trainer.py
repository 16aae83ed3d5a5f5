"""What is used of transformers' Trainer beyond its published interface.

Checked in transformers 5.4 to 5.23 with accelerate 1.10 to 1.15.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
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


class OwnCheckpoints(Trainer):
    """A Trainer whose subclass says what of the model a checkpoint holds; optimizer and random streams are Trainer's.

    A checkpoint that cannot be written ends no training.
    """

    def write_trained(self, folder: Path) -> None:
        """Write into a checkpoint's folder, which may not exist yet, what of the model is not made again by loading."""
        raise NotImplementedError

    def read_trained(self, folder: Path) -> None:
        """Put what `write_trained` has written into the model."""
        raise NotImplementedError

    def not_written(self, error: Exception) -> None:
        """Told why a checkpoint could not be written."""
        raise NotImplementedError

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        self.write_trained(Path(output_dir or self.args.output_dir or "."))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.read_trained(Path(resume_from_checkpoint))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        try:
            super()._save_checkpoint(model, trial)
        # A full disk is a RuntimeError of torch's writer and an error of its own in safetensors.
        except (OSError, RuntimeError, SafetensorError) as error:
            half = Path(self.args.output_dir or ".") / f"checkpoint-{self.state.global_step}"
            shutil.rmtree(half, ignore_errors=True)
            self.not_written(error)


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
