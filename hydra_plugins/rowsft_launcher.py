"""Hydra finds plugins only below this namespace; the launcher itself lives in rowsft/sweep/launcher.py."""

from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

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
        exit_codes = run_jobs([list(overrides) for overrides in job_overrides], self.jobs, self.threads)
        returns = []
        for overrides, code in zip(job_overrides, exit_codes, strict=True):
            job = JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED)
            job.return_value = code
            returns.append(job)
        return returns


ConfigStore.instance().store(group="hydra/launcher", name="fresh_process", node=FreshProcessConfig, provider="rowsft")
