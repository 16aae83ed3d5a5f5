"""One job in several processes (`trainer.strategy`): how many, and whether this is one of them. Imports no torch.

A group is started by `rowsft run` itself, or by torchrun, srun and the like, which then set RANK, WORLD_SIZE,
MASTER_ADDR and MASTER_PORT in every process.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rowsft.config.devices import visible_gpus
from rowsft.errors import UserError

if TYPE_CHECKING:
    from rowsft.config.settings import TrainerSettings

STRATEGIES = ("ddp", "fsdp")
#: Set for the processes that `rowsft run` starts: its own process id.
LAUNCHER = "ROWSFT_LAUNCHER"
_GROUP = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def group_of(environment: Mapping[str, str] = os.environ) -> tuple[int, int] | None:
    """Return (rank, processes) where a launcher has started this process as one of several, else None."""
    if any(name not in environment for name in _GROUP):
        return None
    try:
        return int(environment["RANK"]), int(environment["WORLD_SIZE"])
    except ValueError as error:
        shown = ", ".join(f"{name}={environment[name]}" for name in _GROUP[:2])
        raise UserError(f"{shown}: expected whole numbers; start the processes with torchrun") from error


def local_rank(environment: Mapping[str, str] = os.environ) -> int:
    """Return this process's number among those of its machine, which is that of its GPU there."""
    named = environment.get("LOCAL_RANK", environment.get("SLURM_LOCALID", "0"))
    return int(named) if named.isdecimal() else 0


def is_first(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether this process records: rank 0, and a process that is alone."""
    group = group_of(environment)
    return group is None or group[0] == 0


def processes_to_start(settings: "TrainerSettings", environment: Mapping[str, str] = os.environ) -> int:
    """Return how many processes a run with a strategy starts: `trainer.processes`, or one for every visible GPU.

    Raises UserError where that cannot be told, and where there are fewer GPUs than processes.
    """
    gpus = 0 if settings.device == "cpu" else len(visible_gpus(environment))
    asked = settings.processes
    if asked is None and not gpus:
        raise UserError(
            f"trainer.strategy={settings.strategy}: trainer.processes=null takes one process for every visible GPU, "
            f"and trainer.device={settings.device} sees none; set trainer.processes=2 for two processes on the CPU"
        )
    if gpus and asked is not None and asked > gpus:
        raise UserError(
            f"trainer.processes={asked}: {gpus} GPUs are visible, and each process takes one; lower it, or set "
            "trainer.device=cpu"
        )
    return asked or gpus


def check_group(settings: "TrainerSettings", processes: int | None) -> None:
    """Check a run against the number of processes that it has; None for one that no launcher has started.

    Raises UserError where the two do not fit, and where the processes cannot have equal shares of a batch.
    """
    if processes is None:
        return
    if settings.strategy is None:
        if processes > 1:
            raise UserError(
                f"WORLD_SIZE={processes}: this is one of several processes, and trainer.strategy=null trains in one; "
                "add trainer=ddp or trainer=fsdp, or start it without torchrun"
            )
        return
    if settings.batch_size % processes:
        below = max(processes, settings.batch_size // processes * processes)
        raise UserError(
            f"trainer.batch_size={settings.batch_size}: the examples of a forward pass over all {processes} processes, "
            f"which must have equal shares; set a multiple of {processes}, such as {below}"
        )
