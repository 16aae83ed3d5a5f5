"""What one run holds as it goes, and how it ended."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rowsft import measure
from rowsft.config.run_spec import RunSpec
from rowsft.config.settings import TrainerSettings
from rowsft.methods.base import Method, ResolvedMethod
from rowsft.models.loading import Loaded
from rowsft.runner import trainer as training
from rowsft.selection.budget import Budget
from rowsft.store import Attempt
from rowsft.tasks import Task
from rowsft.tracking.tracker import Tracker


@dataclass
class Job:
    """What one run holds as it goes: filled in by the steps below in their order."""

    spec: RunSpec
    settings: TrainerSettings
    attempt: Attempt
    say: Callable[[str], None]
    method: Method
    task: Task
    budget: Budget
    tracker: Tracker
    clock: measure.PhaseClock
    memory: dict = field(default_factory=lambda: {"select": None, "train": None, "evaluate": None})
    energy: dict = field(default_factory=dict)
    loaded: Loaded | None = None
    model: Any = None
    splits: dict[str, list[dict]] = field(default_factory=dict)
    encoded: list[dict] = field(default_factory=list)
    resolved: ResolvedMethod | None = None
    trainer: training.OrderedTrainer | None = None
    curve_written: bool = False
    gpu: measure.Gpu | None = field(init=False)

    def __post_init__(self):
        if self.device.type == "cuda":
            # Events and whatever names no GPU are then of this one.
            torch.cuda.set_device(self.device)
        self.memory["kind"] = measure.KINDS[self.device.type]
        self.gpu = measure.gpu_of(self.device)

    @property
    def seed(self) -> int:
        return self.spec.config["seed"]

    @property
    def device(self) -> torch.device:
        return training.device_of(self.settings)


@dataclass(frozen=True)
class Outcome:
    """How a run ended. `metrics` are those of the latest finished attempt."""

    run_id: str
    folder: Path
    state: str
    metrics: dict
    message: str = ""
