"""The parts of a record that hold memory: by phase, by part, by process. Bytes; None means not measured."""

from dataclasses import dataclass
from typing import Any

from rowsft.record.part import NOTHING, Count, Number, Part, Text

Numbers = dict[Text, Number | None]


@dataclass(frozen=True, kw_only=True)
class PhaseMemory(Part):
    """Peaks of one phase in bytes.

    peak_allocated_bytes: of tensors. peak_reserved_bytes: of a GPU's allocator. process_peak_bytes: all that the
    process held on the GPU, by NVML. resident_peak_bytes: the process's resident set, taken as resident_method says.
    resident_before_step_bytes and step_peak_new_bytes: what was there before the measured work, and what it added.
    """

    kind: Text | None = None
    peak_allocated_bytes: Number | None = None
    peak_reserved_bytes: Number | None = None
    process_peak_bytes: Number | None = None
    resident_peak_bytes: Number | None = None
    resident_method: Any = None
    resident_before_step_bytes: Number | None = None
    step_peak_new_bytes: Number | None = None


@dataclass(frozen=True, kw_only=True)
class LedgerMoment(Part):
    """The moment of a phase with the most live bytes: bytes by part.

    unattributed_bytes: what was measured without the ledger beyond the parts; None where nothing was measured.
    """

    peak_bytes: Number | None
    parts: Numbers
    measured_peak_bytes: Number | None
    unattributed_bytes: Number | None


@dataclass(frozen=True, kw_only=True)
class Memory(Part):
    """Memory by phase; `kind` says how allocation peaks were taken. The ledger has a moment a phase."""

    kind: Text | None = None
    load: PhaseMemory = PhaseMemory()
    select: PhaseMemory = PhaseMemory()
    train: PhaseMemory = PhaseMemory()
    evaluate: PhaseMemory = PhaseMemory()
    ledger: dict[Text, LedgerMoment] = NOTHING


@dataclass(frozen=True, kw_only=True)
class RankRecord(Part):
    """One process of a run in several."""

    rank: Count
    host: Text | None = None
    device: Text | None = None
    memory: Memory = Memory()


@dataclass(frozen=True, kw_only=True)
class RanksRecord(Part):
    """The processes of a run in several: the attempt's `memory` has the largest of them, here are each and the sums.

    wrapped: the class of what trained. The peaks are of training, summed over the processes.
    """

    strategy: Text | None = None
    processes: Count | None = None
    backend: Text | None = None
    wrapped: Text | None = None
    train_peak_allocated_bytes: Number | None = None
    train_resident_peak_bytes: Number | None = None
    each: list[RankRecord] | None = None
