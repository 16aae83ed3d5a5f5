"""Work in the midst of a phase whose memory is not the phase's: the peaks around it leave it out."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rowsft.measure import resident
from rowsft.measure.device import device_kind

# What a GPU had reached in the present block before work that is left out of it, in bytes.
_reached = {"peak_allocated_bytes": 0, "peak_reserved_bytes": 0}


def gpu_peaks(device: str | torch.device) -> dict[str, int]:
    """Return what a GPU's allocator has reached in the present block, in bytes; nothing on a CPU."""
    if device_kind(device) != "cuda":
        return {}
    counted = {
        "peak_allocated_bytes": torch.cuda.max_memory_allocated(device),
        "peak_reserved_bytes": torch.cuda.max_memory_reserved(device),
    }
    return {name: max(size, _reached[name]) for name, size in counted.items()}


@contextmanager
def leaving_out(device: str | torch.device) -> Iterator[None]:
    """Leave the memory that the block takes out of the peaks, on a GPU and resident, of the block around it.

    What the allocators keep for themselves afterwards counts.
    """
    with resident.left_out():
        if device_kind(device) != "cuda":
            yield
            return
        torch.cuda.synchronize(device)
        _reached.update(gpu_peaks(device))
        yield
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)


def begin() -> None:
    """Say that a block begins whose peaks are counted from here."""
    _reached.update(dict.fromkeys(_reached, 0))
