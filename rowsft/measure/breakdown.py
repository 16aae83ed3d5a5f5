"""The ledger of a run: at every phase's peak, what each part of the memory held."""

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

import torch
from torch import nn

from rowsft.measure.device import device_kind
from rowsft.measure.ledger import CUDA_BLOCK_BYTES, PARTS, Ledger, Moment
from rowsft.measure.memory_log import MemoryLog
from rowsft.record import LedgerMoment

# Points of the picture: enough for its width in pixels.
_POINTS = 600
# Nothing is trained yet, whatever a fresh model's parameters say.
_BEFORE_ATTACHING = ("load", "select")


def record_breakdown(
    log: MemoryLog,
    phase: str,
    work: Callable[[Ledger], object],
    device: torch.device,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    measured: Mapping[str, float | None] = MappingProxyType({}),
) -> list[dict]:
    """Enter into the log's ledger every phase of `work`, called with the ledger, whose phase it may set.

    phase: the one that it begins with. measured: phase -> the peak in bytes that was measured of the same work without
    the ledger. Returns the picture's points: phase, and bytes by part.
    """
    ledger = Ledger(CUDA_BLOCK_BYTES if device_kind(device) == "cuda" else 1)
    ledger.phase = phase
    with ledger, _steady_garbage():
        ledger.hold_model(model, optimizer)
        if phase in _BEFORE_ATTACHING:
            ledger.hold("base_weights", model.parameters())
        ledger.watch_gradients(model)
        ledger.begin()
        work(ledger)
    for name, moment in ledger.peaks().items():
        log.enter_moment(name, entered(moment, measured.get(name)))
    return points(ledger.moments())


@contextmanager
def _steady_garbage() -> Iterator[None]:
    """No collection of cycles inside the block: when it comes depends on what the process did before."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def entered(moment: Moment, measured_bytes: float | None) -> LedgerMoment:
    """Return a phase's peak as the record keeps it; unattributed_bytes is below 0 where the parts claim too much."""
    return LedgerMoment(
        peak_bytes=moment.total,
        parts=dict(moment.parts),
        measured_peak_bytes=measured_bytes,
        unattributed_bytes=None if measured_bytes is None else measured_bytes - moment.total,
    )


def points(moments: Iterable[Moment]) -> list[dict]:
    """The moments thinned out evenly, each stretch by its largest: {"event", "phase", and bytes by part}."""
    every = list(moments)
    stretch = max(1, -(-len(every) // _POINTS))
    kept = []
    for first in range(0, len(every), stretch):
        index = max(range(first, min(first + stretch, len(every))), key=lambda i: every[i].total)
        row = {"event": index, "phase": every[index].phase}
        kept.append(row | {f"{part}_bytes": every[index].parts[part] for part in PARTS})
    return kept
