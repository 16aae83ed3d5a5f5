"""What only the driver knows of a GPU, through NVML: the energy it took, and all the memory that a process holds there.

Everything here is None where there is no GPU, no driver library, or a card that does not count: never zero.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from rowsft.measure.device import device_kind, synchronize

#: The counter is the board's: another process on the same GPU is in it too.
ENERGY_KIND = "nvml_whole_gpu"


class Gpu:
    """One GPU as NVML sees it. `library` is pynvml, initialised, and `handle` what it calls this GPU."""

    def __init__(self, library: Any, handle: Any):
        self._library = library
        self._handle = handle

    def energy_joules(self) -> float | None:
        """Joules since the driver was loaded; None where the card does not count them (before Volta; a MIG slice)."""
        millijoules = self._ask(self._library.nvmlDeviceGetTotalEnergyConsumption)
        return None if millijoules is None else millijoules / 1000

    def process_bytes(self) -> int | None:
        """Bytes that this process holds on the GPU, its context and libraries included; None if NVML does not say.

        It does not know this process inside some containers, whose process numbers are their own.
        """
        processes = self._ask(self._library.nvmlDeviceGetComputeRunningProcesses) or []
        return next((process.usedGpuMemory for process in processes if process.pid == os.getpid()), None)

    def _ask(self, question) -> Any:
        try:
            return question(self._handle)
        except self._library.NVMLError:
            return None


def gpu_of(device: str | torch.device) -> Gpu | None:
    """The GPU behind a torch device; None for a CPU, or where NVML cannot be asked."""
    if device_kind(device) != "cuda":
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        # By UUID: CUDA_VISIBLE_DEVICES renumbers torch's devices, not NVML's.
        uuid = torch.cuda.get_device_properties(device).uuid
        return Gpu(pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}"))
    except pynvml.NVMLError:
        return None


@contextmanager
def energy_of(energy: dict, phase: str, device: str | torch.device, gpu: Gpu | None) -> Iterator[None]:
    """Enter the energy of the block as `energy["<phase>_joules"]`, and its kind; nothing where it cannot be had."""
    synchronize(device)
    before = gpu.energy_joules() if gpu else None
    yield
    synchronize(device)
    after = gpu.energy_joules() if gpu else None
    if before is not None and after is not None:
        energy["kind"] = ENERGY_KIND
        energy[f"{phase}_joules"] = energy.get(f"{phase}_joules", 0.0) + after - before
