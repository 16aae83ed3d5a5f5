"""What record.json holds, as typed parts: `read` is the one reader, `plain` the one writer.

    record.attempts[0].memory.train.peak_allocated_bytes      # None where it was not measured

Parts never change: a new value is a new part. Keys that a newer version wrote are kept and written back.

May import errors alone, so that every room can name what it measures or shows. Never imports torch, opens no file.
"""

from rowsft.record.alone import as_measured, is_alone
from rowsft.record.checking import config_faults, read, read_attempt
from rowsft.record.forgetting import Forgetting
from rowsft.record.memory import LedgerMoment, Memory, PhaseMemory, RankRecord, RanksRecord
from rowsft.record.migration import SCHEMA_VERSION, migrated
from rowsft.record.optimization import Optimization, RateGroup
from rowsft.record.part import LARGEST, Part, plain, unknown_keys
from rowsft.record.parts import (
    Alone,
    Attempt,
    Calibrated,
    DataSeconds,
    Energy,
    Environment,
    Error,
    File,
    HarnessResult,
    Inputs,
    ModelFacts,
    Parameters,
    RecordFile,
    Resumed,
    Seconds,
    State,
    StepSeconds,
    TaskAbout,
    WarmHead,
)

__all__ = [
    "LARGEST",
    "SCHEMA_VERSION",
    "Alone",
    "Attempt",
    "Calibrated",
    "DataSeconds",
    "Energy",
    "Environment",
    "Error",
    "File",
    "Forgetting",
    "HarnessResult",
    "Inputs",
    "LedgerMoment",
    "Memory",
    "ModelFacts",
    "Optimization",
    "Parameters",
    "Part",
    "PhaseMemory",
    "RankRecord",
    "RanksRecord",
    "RateGroup",
    "RecordFile",
    "Resumed",
    "Seconds",
    "State",
    "StepSeconds",
    "TaskAbout",
    "WarmHead",
    "as_measured",
    "config_faults",
    "is_alone",
    "migrated",
    "plain",
    "read",
    "read_attempt",
    "unknown_keys",
]
