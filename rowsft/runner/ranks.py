"""The processes of one run: which of them this one is, and what they tell each other.

Rank 0 alone holds the run's lock and its record, chooses rows and keeps the checkpoints, and tells the others.
"""

import os
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from rowsft.config.processes import LAUNCHER, group_of
from rowsft.config.settings import TrainerSettings
from rowsft.errors import UserError
from rowsft.runner.device import run_device

# Others wait for rank 0 while it scores, however long that takes; a rank that dies ends the wait by itself.
_PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Ranks:
    """`rank` of `size` processes under `strategy` ("ddp" or "fsdp"); the default is a process that is alone.

    launcher: the process id of the `rowsft run` that has started them and that closes the record of a run that failed.
    """

    rank: int = 0
    size: int = 1
    strategy: str | None = None
    backend: str | None = None
    launcher: int | None = None
    # For objects: it waits longer than the one for gradients, and it needs no GPU.
    control: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this process holds the record."""
        return self.rank == 0

    @property
    def is_sharded(self) -> bool:
        """Whether each process keeps a part of the weights, so that all take part in every forward pass."""
        return self.strategy == "fsdp"

    @property
    def is_watched(self) -> bool:
        """Whether the launcher that closes a failed run's record is still there."""
        return self.launcher is not None and os.getppid() == self.launcher

    def under(self, strategy: str | None) -> "Ranks":
        """Return the same processes under another strategy."""
        return replace(self, strategy=strategy)

    def handed_on(self, value: Any) -> Any:
        """Return rank 0's `value` in every process. All call it; the others' own is dropped."""
        if self.size == 1:
            return value
        held = [value if self.is_first else None]
        dist.broadcast_object_list(held, src=0, group=self.control)
        return held[0]

    def gathered(self, value: Any) -> list[Any]:
        """Return every process's `value`, by rank, in rank 0; an empty list in the others. All call it."""
        if self.size == 1:
            return [value]
        held: list[Any] | None = [None] * self.size if self.is_first else None
        dist.gather_object(value, held, dst=0, group=self.control)
        return held or []

    def check_same(self, value: Any, what: str) -> None:
        """Raise UserError in every process where `value` is not the same in all of them. All call it."""
        different = self.handed_on([rank for rank, other in enumerate(self.gathered(value)) if other != value])
        if different:
            raise UserError(
                f"rank {different[0]} of {self.size} has {what} other than rank 0, so that they would train different "
                "models; give every process the same files and versions, or run it in one process"
            )

    def end(self) -> None:
        """Leave the group, once all have got here."""
        if dist.is_initialized():
            dist.barrier(group=self.control)
            dist.destroy_process_group()


ALONE = Ranks()


def joined(settings: TrainerSettings) -> Ranks:
    """Join the processes that a launcher has started with this one; ALONE where it has not, or for no strategy."""
    if settings.strategy is None or group_of() is None:
        return ALONE
    device = run_device(settings)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend)
    launcher = os.environ.get(LAUNCHER, "")
    return Ranks(
        rank=dist.get_rank(),
        size=dist.get_world_size(),
        strategy=settings.strategy,
        backend=backend,
        launcher=int(launcher) if launcher.isdecimal() else None,
        control=dist.new_group(backend="gloo", timeout=_PATIENCE),
    )
