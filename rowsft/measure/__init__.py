"""What a run costs: seconds by phase and step, exact allocation peaks, resident set, energy, and where it ran.

May import compat, and record, whose parts it fills in: it measures blocks of code and devices, and must not know runs
or methods.
"""

from rowsft.measure.breakdown import record_breakdown
from rowsft.measure.clocks import PHASES, PhaseClock, StepClock
from rowsft.measure.environment import collect
from rowsft.measure.left_out import gpu_peaks, leaving_out
from rowsft.measure.memory import (
    KINDS,
    AllocationPeak,
    peaks_by_phase,
    phase_memory,
    profile_peak,
    resident_tensor_bytes,
)
from rowsft.measure.memory_log import MemoryLog
from rowsft.measure.nvml import EnergyMeter, Gpu, gpu_of
from rowsft.measure.phases import peak_so_far, probe, watched
from rowsft.measure.resident import ResidentPeak

__all__ = [
    "KINDS",
    "PHASES",
    "AllocationPeak",
    "EnergyMeter",
    "Gpu",
    "MemoryLog",
    "PhaseClock",
    "ResidentPeak",
    "StepClock",
    "record_breakdown",
    "collect",
    "gpu_of",
    "gpu_peaks",
    "leaving_out",
    "peak_so_far",
    "peaks_by_phase",
    "phase_memory",
    "probe",
    "profile_peak",
    "resident_tensor_bytes",
    "watched",
]
