"""One job, one GPU: which one it is, told through the environment before torch is imported. Imports no torch.

A process that sees several GPUs spreads over them unasked (transformers' Trainer copies the model to each and
multiplies the batch), and parallel processes all take the first. So `rowsft run` hides all GPUs but its own from
itself, and a sweep hands the visible ones out to the jobs that run at once.
"""

import os
import re
import sys
from collections.abc import Mapping, MutableMapping

from rowsft.errors import UserError

VISIBLE = "CUDA_VISIBLE_DEVICES"
#: Set beside it: the `trainer.device` whose GPU is the only visible one, and so the first.
CHOSEN = "ROWSFT_CHOSEN_DEVICE"
DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


def index_of(device: str, environment: Mapping[str, str] = os.environ) -> int:
    """The number that torch gives, in this process, to the GPU that `trainer.device` names; 0 where it names none."""
    if environment.get(CHOSEN) == device:
        return 0
    return int(device.partition(":")[2] or 0)


def see_one(device: str, environment: MutableMapping[str, str] = os.environ) -> None:
    """Hide all GPUs but the one that `trainer.device` names from this process and those that it starts.

    Only before torch is imported: later it would not be seen. Raises UserError for a number beyond the visible ones.
    """
    if device == "cpu" or environment.get(CHOSEN) == device or "torch" in sys.modules:
        return
    environment.update(_only(device, index_of(device, environment), _listed(environment)))


def devices_for(
    slot: int,
    device: str = "auto",
    environment: Mapping[str, str] = os.environ,
    count: int | None = None,
    processes: int | None = 1,
) -> dict[str, str]:
    """Environment variables for a job of a sweep, so that jobs that run at once take GPUs of their own, in turn.

    slot: which of the places for jobs that run at once the job has, from 0; not the number of the job, since a place is
    free again when its job ends. device: the job's `trainer.device`; what names a GPU or the CPU is left alone. count:
    of the GPUs in the machine, asked of its driver if None. processes: how many the job has, each of which takes a GPU;
    None takes all. Empty where there is no GPU to choose.
    """
    if device not in ("auto", "cuda") or processes is None:
        return {}
    listed = visible_gpus(environment, count)
    if processes > 1:
        # Where they do not suffice the job says so itself.
        first = slot % max(1, len(listed) // processes) * processes
        return {VISIBLE: ",".join(listed[first : first + processes])} if listed else {}
    return _only(device, slot % len(listed), listed) if listed else {}


def visible_gpus(environment: Mapping[str, str] = os.environ, count: int | None = None) -> list[str]:
    """Names of the GPUs that a process sees, as CUDA_VISIBLE_DEVICES names them. count: as in `devices_for`."""
    listed = _listed(environment)
    return [str(number) for number in range(_count() if count is None else count)] if listed is None else listed


def _only(device: str, index: int, listed: list[str] | None) -> dict[str, str]:
    if listed is not None and index >= max(1, len(listed)):
        raise UserError(
            f"trainer.device={device}: {len(listed)} GPUs are visible ({VISIBLE}={','.join(listed)}), counted from 0; "
            "choose one of them"
        )
    if listed == []:
        return {}
    return {VISIBLE: str(index) if listed is None else listed[index], CHOSEN: device}


def _listed(environment: Mapping[str, str]) -> list[str] | None:
    """What the environment makes visible; None where it says nothing, so that all are."""
    visible = environment.get(VISIBLE)
    if visible is None:
        return None
    names: list[str] = []
    for name in (part.strip() for part in visible.split(",")):
        # CUDA takes no notice of what follows a name that it does not know.
        if not name or name.startswith("-") or name == "NoDevFiles":
            break
        names.append(name)
    return names


def _count() -> int:
    """GPUs in this machine, as its driver tells; 0 without one."""
    try:
        import pynvml
    except ImportError:
        return 0
    try:
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError:
        return 0
