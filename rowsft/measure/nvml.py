"""What only the driver knows of a GPU, through NVML: the energy it took, and all the memory that a process holds there.

Everything here is None where there is no GPU, no driver library, or a card that does not count: never zero.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from rowsft.measure.device import device_kind, synchronize
from rowsft.record import Energy

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


class EnergyMeter:
    """The energy of a run by phase: `record` is the record's `energy`, empty where the GPU does not count it."""

    def __init__(self, device: str | torch.device, gpu: Gpu | None):
        self.record = Energy.of()
        self._device, self._gpu = device, gpu

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the joules of the block to those of the phase, one of select, train, evaluate."""
        before = self._joules()
        yield
        after = self._joules()
        if before is not None and after is not None:
            key = f"{name}_joules"
            so_far = getattr(self.record, key) or 0.0
            self.record = self.record.changed(kind=ENERGY_KIND, **{key: so_far + after - before})

    def _joules(self) -> float | None:
        synchronize(self._device)
        return self._gpu.energy_joules() if self._gpu else None
