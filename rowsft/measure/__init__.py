"""What a run costs: seconds by phase and step, exact allocation peaks, resident set, and the machine it ran on."""

from rowsft.measure.account import account
from rowsft.measure.clocks import PHASES, PhaseClock, StepClock
from rowsft.measure.environment import collect
from rowsft.measure.memory import KINDS, AllocationPeak, phase_memory, profile_peak, resident_tensor_bytes
from rowsft.measure.phases import probe, watched
from rowsft.measure.resident import ResidentPeak

__all__ = [
    "KINDS",
    "PHASES",
    "AllocationPeak",
    "PhaseClock",
    "ResidentPeak",
    "StepClock",
    "account",
    "collect",
    "phase_memory",
    "probe",
    "profile_peak",
    "resident_tensor_bytes",
    "watched",
]
