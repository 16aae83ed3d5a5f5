"""What one run holds as it goes, and how it ended."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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
from rowsft.runner.device import run_device
from rowsft.runner.originals import Originals
from rowsft.runner.progress import ProgressFile
from rowsft.runner.ranks import ALONE, Ranks
from rowsft.runner.resuming import Resumption
from rowsft.runner.unrecorded import UnrecordedAttempt
from rowsft.selection.budget import Budget
from rowsft.store import OpenAttempt
from rowsft.tasks import Task
from rowsft.tasks.general_text import GeneralText
from rowsft.tracking.tracker import Tracker


@dataclass
class Job:
    """What one run holds as it goes: filled in by the steps of run.py in their order."""

    spec: RunSpec
    settings: TrainerSettings
    attempt: OpenAttempt | UnrecordedAttempt
    say: Callable[[str], None]
    method: Method
    task: Task
    budget: Budget
    tracker: Tracker
    clock: measure.PhaseClock
    ranks: Ranks = ALONE
    trainer: training.OrderedTrainer | None = None
    curve_written: bool = False
    # Stop training there, its data and schedule being those of the whole.
    stop_after_steps: int | None = None
    # Where the run goes on from, if a process before this one was stopped.
    resumption: Resumption | None = None
    memory: measure.MemoryLog = field(init=False)
    energy: measure.EnergyMeter = field(init=False)
    gpu: measure.Gpu | None = field(init=False)
    progress: ProgressFile = field(init=False)
    # Where trainer.forgetting asks for it: the text, and what training changes in place.
    general_text: GeneralText | None = None
    originals: Originals | None = None
    # What has to be cleared away when the run ends, however it does.
    until_end: ExitStack = field(default_factory=ExitStack)
    # The steps fill these in; nothing reads them before.
    loaded: Loaded = field(init=False)
    model: Any = field(init=False)
    splits: dict[str, list[dict]] = field(init=False)
    encoded: list[dict] = field(init=False)
    resolved: ResolvedMethod = field(init=False)

    def __post_init__(self):
        if self.device.type == "cuda":
            # Events and whatever names no GPU are then of this one.
            torch.cuda.set_device(self.device)
        self.progress = ProgressFile(self.attempt.path, self.device)
        self.clock.on_phase = self.progress.enter
        self.gpu = measure.gpu_of(self.device)
        self.memory = measure.MemoryLog(self.device)
        self.energy = measure.EnergyMeter(self.device, self.gpu)

    @property
    def seed(self) -> int:
        return self.spec.config["seed"]

    @property
    def device(self) -> torch.device:
        return run_device(self.settings)

    @property
    def whole_device(self) -> torch.device:
        """Where the model is while it is whole. What is to be sharded may be too large for a GPU: it waits outside."""
        return torch.device("cpu") if self.ranks.is_sharded else self.device

    @contextmanager
    def metered(self, phase: str) -> Iterator[None]:
        """Enter the memory of the block, and its energy where a GPU counts it."""
        with measure.watched(self.memory, phase, self.device, self.gpu), self.energy.phase(phase):
            yield


@dataclass(frozen=True)
class Outcome:
    """How a run ended. `metrics` are those of the latest finished attempt."""

    run_id: str
    folder: Path
    state: str
    metrics: dict
    message: str = ""
