"""What a checkpoint inside a run holds: what training has changed, never the frozen base, and how far the run was."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback

from rowsft.config.settings import TrainerSettings
from rowsft.errors import UserError
from rowsft.runner import sharding, stopping

# Elements of a buffer that is looked into; larger ones are quantised weights, which no training writes.
_MOST = 2**20

TRAINED = "trained.safetensors"
RUN_STATE = "run_state.json"


class Changes:
    """What training changes in a model: what takes a gradient, and the buffers that it writes.

    Made before the first step; a method may freeze some of it for a while later on. `digest` tells two trainable sets
    apart: names, shapes and types of what is trained, and the contents of the model's integer buffers, which hold the
    chosen rows.
    """

    def __init__(self, model: nn.Module):
        self._model = model
        self._names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        # By content: batch norm's kernels write running statistics without raising a tensor's version.
        self._buffers = {name: buffer.detach().cpu().clone() for name, buffer in _small_buffers(model)}
        self.digest = _digest(model)

    def write(self, folder: Path, tensors: dict[str, torch.Tensor] | None = None) -> None:
        """Write the trained parameters and the changed buffers, bit for bit; or `tensors`, as `gathered` gave them."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.gathered(keep=True) if tensors is None else tensors, folder / TRAINED)

    def gathered(self, keep: bool) -> dict[str, torch.Tensor]:
        """Return what is written, whole; every process of a sharded model takes part, and those that keep none of it
        get nothing."""
        tensors: dict[str, torch.Tensor] = {}
        for name, tensor in self._trained().items():
            if isinstance(tensor, sharding.DTensor):
                # One at a time: a GPU has no room for all of them whole.
                tensor = sharding.whole(tensor).cpu()
            if keep:
                tensors[name] = _own(tensor)
        return tensors

    def read(self, folder: Path) -> None:
        """Put back what `write` has written. Raises RuntimeError where the model trains something else."""
        tensors = load_file(folder / TRAINED)
        parameters = {name: p for name, p in self._model.named_parameters() if name in self._names}
        if missing := parameters.keys() - tensors.keys():
            raise RuntimeError(f"{folder / TRAINED} lacks {', '.join(sorted(missing)[:3])}: it is of another model")
        with torch.no_grad():
            for name, tensor in tensors.items():
                if name in parameters:
                    parameters[name].copy_(sharding.like(tensor, parameters[name]))
                else:
                    _put_buffer(self._model, name, tensor)

    def _trained(self) -> dict[str, torch.Tensor]:
        trained = {name: p.detach() for name, p in self._model.named_parameters() if name in self._names}
        written = {
            name: buffer
            for name, buffer in _small_buffers(self._model)
            if (before := self._buffers.get(name)) is None or not torch.equal(before, buffer.cpu())
        }
        return trained | written


def _small_buffers(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    return ((name, buffer) for name, buffer in model.named_buffers() if buffer.numel() <= _MOST)


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor alone: a view would bring the whole of its storage, which others may share."""
    tensor = tensor.contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _put_buffer(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    place, _, leaf = name.rpartition(".")
    module = model.get_submodule(place)
    present = getattr(module, leaf)
    if present.shape == tensor.shape:
        present.copy_(tensor)
    else:
        setattr(module, leaf, tensor.to(present.device))


def _digest(model: nn.Module) -> str:
    whole = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            whole.update(f"{name} {tuple(parameter.shape)} {parameter.dtype};".encode())
    for name, buffer in _small_buffers(model):
        if not buffer.is_floating_point() and buffer.dtype != torch.bool and not buffer.is_complex():
            whole.update(f"{name}:".encode() + buffer.detach().cpu().contiguous().numpy().tobytes())
    return whole.hexdigest()


@dataclass(frozen=True)
class RunState:
    """How far a run was, beside what Trainer keeps itself: its curve, its clocks, and what it trains.

    step: optimizer steps done. peaks: the training phase's memory so far, as `PhaseMemory` names it.
    """

    step: int
    digest: str
    curve: list[dict[str, Any]]
    steps: dict[str, Any]
    seconds: dict[str, Any]
    checkpoint_seconds: float
    peaks: dict[str, int]
    validation_seconds: float = 0.0

    def write(self, folder: Path) -> None:
        """Write it into a checkpoint, with the sizes of what is there already."""
        sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
        (folder / RUN_STATE).write_text(json.dumps({**vars(self), "sizes": sizes}), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "RunState | None":
        """Return that of a checkpoint, None where it is damaged or incomplete."""
        try:
            held = json.loads((folder / RUN_STATE).read_text(encoding="utf-8"))
            sizes = held.pop("sizes")
            whole = {TRAINED} <= sizes.keys() and all((folder / n).stat().st_size == size for n, size in sizes.items())
            return cls(**held) if whole else None
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None


class CheckpointCallback(TrainerCallback):
    """Has the Trainer write a checkpoint when one is due, and hands it on once it is whole.

    Due at steps on the curve alone: Trainer forgets what was lost between two of them. A stop that waits for a
    checkpoint (`rowsft.runner.stopping`) is raised once it is written. keep: takes the written folder; may raise
    UserError, which is said. state: what to write beside it. agreed: what several processes do together, by what this
    one would do: their clocks differ.
    """

    def __init__(
        self,
        settings: TrainerSettings,
        state: Callable[[float], RunState],
        keep: Callable[[Path], object],
        say: Callable[[str], None],
        agreed: Callable[[bool], bool] = lambda due: due,
    ):
        self._settings, self._state, self._keep, self._say = settings, state, keep, say
        self._agreed = agreed
        self._kept = False
        self._last_step, self._last = 0, time.monotonic()
        self._begun = 0.0
        self.seconds = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self._last_step, self._last = state.global_step, time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        if not control.should_log and state.global_step % state.logging_steps:
            return
        # After the last step there is evaluation alone to lose, which a long run would rather not train again for.
        due = self._kept if state.global_step >= state.max_steps else self._due(state.global_step)
        due = (due or stopping.pending() is not None) and state.global_step > self._last_step
        if self._agreed(due):
            self._begun = time.monotonic()
            control.should_save = True

    def on_save(self, args, state, control, **kwargs):
        self._enter(args, state)
        if (stop := stopping.pending()) is not None:
            raise stop

    def _enter(self, args, state) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self._last_step, self._last = state.global_step, time.monotonic()
        if not folder.exists():
            return
        try:
            self._state(self.seconds + self._last - self._begun).write(folder)
            self._keep(folder)
            self._kept = True
        except (OSError, UserError) as error:
            self.failed(error)
        self.seconds += time.monotonic() - self._begun

    def failed(self, error: BaseException) -> None:
        """Say why there is no checkpoint. The run goes on: the earlier one stays, and the next is tried in its time."""
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        self._say(f"  warning: no checkpoint could be written ({first}); the run goes on")

    def _due(self, step: int) -> bool:
        steps, minutes = self._settings.checkpoint_steps, self._settings.checkpoint_minutes
        by_steps = steps is not None and step - self._last_step >= steps
        return by_steps or (minutes is not None and time.monotonic() - self._last >= 60 * minutes)
