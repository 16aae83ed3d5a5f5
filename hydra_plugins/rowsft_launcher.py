"""Hydra finds plugins only below this namespace; the launchers themselves live in rowsft/sweep/."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from rowsft.sweep.launcher import run_jobs


@dataclass
class FreshProcessConfig:
    """jobs: how many at once (times are only comparable at 1); threads: CPU threads of each, null for its share."""

    _target_: str = "hydra_plugins.rowsft_launcher.FreshProcessLauncher"
    jobs: int = 1
    threads: int | None = None


class FreshProcessLauncher(Launcher):
    """Runs every job of a sweep in a process of its own, so that no job's memory or crash reaches the next."""

    def __init__(self, jobs: int, threads: int | None) -> None:
        self.jobs, self.threads = jobs, threads

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        jobs = [list(overrides) for overrides in job_overrides]
        return _returns(jobs, run_jobs(jobs, self.jobs, self.threads))


class _EngineLauncher(Launcher):
    """Hands jobs to an engine's own launcher, without what is done already. settings: the keys of its file in conf/."""

    def __init__(self, **settings: Any) -> None:
        self.settings = {
            key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            for key, value in settings.items()
        }

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.folder, self.engine = Path(config.hydra.sweep.dir), self._engine()

    @abstractmethod
    def _engine(self) -> Any:
        """Return the engine. Its package is imported here, once it is chosen."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        jobs = [list(overrides) for overrides in job_overrides]
        return _returns(jobs, self.engine.run(jobs, initial_job_idx, self.folder))


class SlurmLauncher(_EngineLauncher):
    """hydra/launcher=slurm"""

    def _engine(self) -> Any:
        from rowsft.sweep.slurm import Slurm

        return Slurm(self.settings)


class RayLauncher(_EngineLauncher):
    """hydra/launcher=ray"""

    def _engine(self) -> Any:
        from rowsft.sweep.ray import Ray

        return Ray(self.settings)


def _returns(jobs: Sequence[list[str]], codes: Sequence[int]) -> list[JobReturn]:
    """What a launcher gives for its jobs: the exit code of each as its value."""
    returns = []
    for overrides, code in zip(jobs, codes, strict=True):
        job = JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
        job.return_value = code
        returns.append(job)
    return returns


ConfigStore.instance().store(group="hydra/launcher", name="fresh_process", node=FreshProcessConfig, provider="rowsft")
