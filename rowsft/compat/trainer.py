"""What is used of transformers' Trainer beyond its published interface.

Checked in transformers 5.4 to 5.23 with accelerate 1.10 to 1.15.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
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


#: A process's random streams as Trainer writes them, or why they could not be written.
RandomState = bytes | OSError


class CheckpointsOfRanks(OwnCheckpoints):
    """A Trainer in one of several processes, whose checkpoints rank 0 writes whole, from what all of them have.

    All processes gather first, and then rank 0 alone writes: no error in writing leaves the others waiting. Where one
    of them could not write its random streams there is no checkpoint.
    """

    #: What is gathered for the checkpoint that is being written: optimizer's state, and random streams by rank.
    _optimizer_state: dict[str, Any] | None = None
    _random_states: list[bytes] | None = None

    def gather_checkpoint(self, random_state: RandomState) -> tuple[dict[str, Any], list[RandomState]]:
        """Return the whole optimizer's state and the random states by rank, in rank 0. All processes call it."""
        raise NotImplementedError

    def reseed(self, checkpoint: Path) -> None:
        """Seed the random streams of a process that the checkpoint has none for."""
        raise NotImplementedError

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._optimizer_state, states = self.gather_checkpoint(self._own_random_state())
        self._random_states = [state for state in states if isinstance(state, bytes)]
        try:
            if failed := [state for state in states if not isinstance(state, bytes)]:
                self.not_written(failed[0])
            elif self.args.process_index == 0:
                super()._save_checkpoint(model, trial)
        finally:
            self._optimizer_state = self._random_states = None

    def _own_random_state(self) -> RandomState:
        """Return what Trainer writes of it, in a folder of this process's own, or why it cannot."""
        folder = Path(self.args.output_dir or ".")
        written = folder / _rng_file(self.args.process_index, self.args.world_size)
        try:
            super()._save_rng_state(str(folder))
            return written.read_bytes()
        # A full disk is a RuntimeError of torch's writer.
        except (OSError, RuntimeError) as error:
            return OSError(str(error))
        finally:
            written.unlink(missing_ok=True)

    def store_flos(self) -> None:
        """Exchange no estimates of operations: a checkpoint would wait for the processes that write none."""

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        optimizer: Any = self.optimizer
        optimizer.state_dict = lambda: self._optimizer_state
        try:
            super()._save_optimizer_and_scheduler(output_dir)
        finally:
            del optimizer.state_dict

    def _save_rng_state(self, output_dir: str) -> None:
        for rank, state in enumerate(self._random_states or []):
            (Path(output_dir) / _rng_file(rank, len(self._random_states or []))).write_bytes(state)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        if (Path(checkpoint) / _rng_file(self.args.process_index, self.args.world_size)).is_file():
            super()._load_rng_state(checkpoint)
        else:
            self.reseed(Path(checkpoint))


def _rng_file(rank: int, size: int) -> str:
    """The name that Trainer gives it."""
    return f"rng_state_{rank}.pth" if size > 1 else "rng_state.pth"


class ShardedModel(Trainer):
    """A Trainer of a model that fully_shard has sharded before: it stays where it is, and is not wrapped again."""

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        """Leave it where its shards are."""

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        prepare = self.accelerator.prepare_model
        # It would copy the model to every process; in evaluation mode it does what autocast takes.
        vars(self.accelerator)["prepare_model"] = lambda model, *_, **__: prepare(
            model, device_placement=False, evaluation_mode=True
        )

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        return self._norm(model.parameters(), self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | None = None) -> Tensor:
        return self._norm(model.parameters(), None) if grad_norm is None else grad_norm

    @staticmethod
    def _norm(parameters: Iterable[nn.Parameter], most: float | None) -> Tensor:
        """Return the gradients' norm over all processes; scale them to `most`."""
        trained = [parameter for parameter in parameters if parameter.grad is not None]
        norm: Any = nn.utils.get_total_norm([parameter.grad for parameter in trained if parameter.grad is not None])
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        if most is not None:
            nn.utils.clip_grads_with_norm_(trained, most, norm)
        return norm


class OneDeviceArguments(TrainingArguments):
    """transformers' arguments for one device: with several GPUs visible it would copy the model to each of them.

    The GPU is torch's current one, which whoever makes these arguments has set. One of several processes finds the
    group of processes made already.
    """

    @cached_property
    def _setup_devices(self) -> torch.device:
        current = None if self.use_cpu else torch.cuda.current_device()
        device = super()._setup_devices
        if current is None:
            # Several processes would have cpu:0, cpu:1, to which torch 2.11 loads no checkpoint's optimizer.
            return torch.device(device.type)
        self._n_gpu = 1
        torch.cuda.set_device(current)
        return torch.device("cuda", current)
