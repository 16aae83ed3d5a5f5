"""The memory of a run as it is measured, phase by phase."""

import torch

from rowsft.measure.device import device_kind
from rowsft.measure.memory import KINDS
from rowsft.record import LedgerMoment, Memory, PhaseMemory


class MemoryLog:
    """What is known of a run's memory so far: `record` is the record's `memory`."""

    def __init__(self, device: str | torch.device):
        nothing = PhaseMemory()
        self.record = Memory.of(kind=KINDS[device_kind(device)], select=nothing, train=nothing, evaluate=nothing)

    def __getitem__(self, phase: str) -> PhaseMemory:
        return getattr(self.record, phase)

    def enter(self, phase: str, memory: PhaseMemory) -> None:
        """Put the peaks of a phase in place of what was known of it. Raises TypeError for an unknown phase."""
        self.record = self.record.changed(**{phase: memory})

    def enter_moment(self, phase: str, moment: LedgerMoment) -> None:
        """Put the largest moment of a phase into the ledger, whose phases are those of a step, too."""
        self.record = self.record.changed(ledger={**self.record.ledger, phase: moment})
