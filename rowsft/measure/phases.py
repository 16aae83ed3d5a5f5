"""The memory of one phase of a run, entered into its memory log."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from rowsft.measure.device import device_kind
from rowsft.measure.memory import AllocationPeak, phase_memory
from rowsft.measure.memory_log import MemoryLog
from rowsft.measure.nvml import Gpu
from rowsft.measure.resident import ResidentPeak, high_water_bytes
from rowsft.record import PhaseMemory, plain


@contextmanager
def watched(log: MemoryLog, phase: str, device: torch.device, gpu: Gpu | None = None) -> Iterator[None]:
    """Enter the peaks of the block, in bytes, as far as they can be had for free, as those of `phase`.

    A GPU's allocator keeps count at no cost; on a CPU the allocation peak is None here and comes later, from `probe`.
    gpu: the device as NVML sees it, for process_peak_bytes: all that the process holds there, its context and libraries
    included, when the allocator had reserved most. A block that raises leaves what it reached: how far a run got that
    died of memory.
    """
    on_gpu = device_kind(device) == "cuda"
    resident, peak = ResidentPeak(), AllocationPeak(device) if on_gpu else None
    try:
        with resident, peak or nullcontext():
            yield
    finally:
        log.enter(
            phase,
            PhaseMemory.of(
                peak_allocated_bytes=peak and peak.peak_allocated_bytes,
                peak_reserved_bytes=peak and peak.peak_reserved_bytes,
                process_peak_bytes=peak and _process_peak_bytes(gpu, device, peak),
                resident_peak_bytes=resident.peak_bytes,
                resident_method=resident.method,
            ),
        )


def peak_so_far(device: torch.device) -> tuple[int | None, str]:
    """Return the largest number of bytes since a block was last `watched`, and their kind: allocated or resident.

    A GPU counts what is allocated. It waits for nothing and changes nothing.
    """
    if device_kind(device) == "cuda":
        return torch.cuda.max_memory_allocated(device), "allocated"
    return high_water_bytes(), "resident"


def _process_peak_bytes(gpu: Gpu | None, device: torch.device, peak: AllocationPeak) -> int | None:
    """NVML gives the present alone: what the allocator has returned to the driver since its peak is added."""
    present_bytes = gpu.process_bytes() if gpu else None
    if present_bytes is None or peak.peak_reserved_bytes is None:
        return None
    return present_bytes + peak.peak_reserved_bytes - torch.cuda.memory_reserved(device)


def probe(
    log: MemoryLog,
    phase: str,
    work: Callable[[], object],
    device: torch.device,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    held_bytes: int = 0,
) -> None:
    """Enter the exact allocation peak of `work` as that of `phase`, if it is the largest seen so far.

    held_bytes: what stays allocated meanwhile beside model and optimizer.
    """
    peaks = phase_memory(work, device, model, optimizer, held_bytes)
    if (peaks.peak_allocated_bytes or 0) > (log[phase].peak_allocated_bytes or 0):
        log.enter(phase, log[phase].changed(**plain(peaks)))
