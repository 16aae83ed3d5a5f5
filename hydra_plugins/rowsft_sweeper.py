"""Hydra's own sweeper, with the jobs checked by the launcher, which composes them anyway and far sooner.

What it writes down of a sweep (multirun.yaml) holds no secrets.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from rowsft.output import redact


@dataclass
class SweeperConfig:
    """max_batch_size: how many jobs are handed over at a time, null for all; params: what an experiment sweeps."""

    _target_: str = "hydra_plugins.rowsft_sweeper.Sweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = None


class Sweeper(BasicSweeper):
    """Every combination of the values, first key slowest; nothing is written before all jobs are known to be right."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        # The launcher has the real one; what is kept here is written down and says where.
        folder = config.hydra.sweep.dir
        self.config = without_secrets(config)
        self.config.hydra.sweep.dir = folder

    def sweep(self, arguments: list[str]) -> list:
        """Check every job, then run them as Hydra does."""
        from rowsft.sweep import launcher

        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        batches = self.split_arguments(parser.parse_overrides([*self._parse_config(), *arguments]), None)
        launcher.check(batches[0])
        return super().sweep(arguments)

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Checked already."""


def without_secrets(config: DictConfig) -> DictConfig:
    """A sweep's configuration with Hydra's part, as it may be written down. Interpolations stay unresolved."""
    plain = redact.config(OmegaConf.to_container(config, resolve=False))
    hydra = plain["hydra"]
    for group, settings in hydra["overrides"].items():
        hydra["overrides"][group] = [redact.override(text) for text in settings]
    # The same overrides in one text.
    hydra["job"]["override_dirname"] = ",".join(hydra["overrides"]["task"])
    return OmegaConf.create(plain)


ConfigStore.instance().store(group="hydra/sweeper", name="rowsft", node=SweeperConfig, provider="rowsft")
