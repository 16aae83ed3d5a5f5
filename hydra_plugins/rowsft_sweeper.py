"""Every combination of the values that a sweep names, checked by the launcher before anything is written.

Unlike Hydra's own sweeper it does not compose each job to check it (the launcher does, and far sooner), and what it
writes down of a sweep (multirun.yaml) holds no secrets.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper as HydraSweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from rowsft.config.typed import plain
from rowsft.errors import UserError
from rowsft.output import redact


@dataclass
class SweeperConfig:
    """max_batch_size: how many jobs are handed over at a time, null for all; params: what an experiment sweeps."""

    _target_: str = "hydra_plugins.rowsft_sweeper.Sweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = None


class Sweeper(HydraSweeper):
    """The first key is the slowest; nothing is written before all jobs are known to be right."""

    def __init__(self, max_batch_size: int | None, params: dict[str, str] | None = None) -> None:
        if max_batch_size is not None and max_batch_size < 1:
            raise UserError(f"hydra.sweeper.max_batch_size={max_batch_size}: expected 1 or more, or null for all")
        self.max_batch_size, self.params = max_batch_size, params or {}
        self.launched = 0

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.parser = OverridesParser.create(config_loader=hydra_context.config_loader)
        self.jobs_launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        if type(self.jobs_launcher).__module__.startswith(("hydra._internal.", "hydra_plugins.hydra_")):
            # It would call a function in each job's name, in this process or another, and none would run.
            chosen = config.hydra.runtime.choices["hydra/launcher"]
            raise UserError(f"hydra/launcher={chosen}: cannot run the jobs; expected fresh_process, slurm or ray")
        self.folder, self.config = Path(config.hydra.sweep.dir), without_secrets(config)
        self.config.hydra.sweep.dir = str(config.hydra.sweep.dir)

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Check every job, then hand all of them to the launcher; returns what it returns, batch by batch."""
        from rowsft.sweep import due, under_way
        from rowsft.sweep.tuning import Stage

        given = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        jobs = _combinations(self.parser.parse_overrides(given))
        due.check(jobs)
        self.folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, self.folder / "multirun.yaml")
        tuned = Stage(due.check, self._launch, under_way.sweep.resolver.say).run(jobs)
        under_way.sweep.failed += list(dict.fromkeys(why for _, why in tuned.left_out))
        return [*self._launch(tuned.jobs), [_left_out(overrides) for overrides, _ in tuned.left_out]]

    def _launch(self, jobs: list[list[str]]) -> list[Sequence[JobReturn]]:
        """Hand jobs to the launcher, batch by batch."""
        size, begun = self.max_batch_size or max(1, len(jobs)), self.launched
        self.launched += len(jobs)
        return [
            self.jobs_launcher.launch(jobs[first : first + size], initial_job_idx=begun + first)
            for first in range(0, len(jobs), size)
        ]


def _left_out(overrides: list[str]) -> JobReturn:
    """Return what stands for a job that was not started: as of a launcher's, its exit code is the value."""
    job = JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
    job.return_value = 1
    return job


def _combinations(overrides: Sequence[Override]) -> list[list[str]]:
    """The overrides of every job; where a key is given twice, the later one holds."""
    values: dict[str, list[str]] = {}
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            values[key] = [f"{key}={override.get_value_element_as_str()}"]
        elif override.is_discrete_sweep():
            values[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            raise UserError(f"{override.input_line}: a range without steps; list the values, {key}=a,b,c")
    return [list(job) for job in itertools.product(*values.values())]


def without_secrets(config: DictConfig) -> DictConfig:
    """A sweep's configuration with Hydra's part, as it may be written down. Interpolations stay unresolved."""
    whole = redact.config(plain(config, resolve=False))
    hydra = whole["hydra"]
    for group, settings in hydra["overrides"].items():
        hydra["overrides"][group] = [redact.override(text) for text in settings]
    # The same overrides in one text.
    hydra["job"]["override_dirname"] = ",".join(hydra["overrides"]["task"])
    return OmegaConf.create(whole)


ConfigStore.instance().store(group="hydra/sweeper", name="rowsft", node=SweeperConfig, provider="rowsft")
