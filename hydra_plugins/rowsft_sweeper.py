"""Hydra's own sweeper, with the jobs checked by the launcher, which composes them anyway and far sooner."""

from collections.abc import Sequence
from dataclasses import dataclass

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser


@dataclass
class SweeperConfig:
    """max_batch_size: how many jobs are handed over at a time, null for all; params: what an experiment sweeps."""

    _target_: str = "hydra_plugins.rowsft_sweeper.Sweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = None


class Sweeper(BasicSweeper):
    """Every combination of the values, first key slowest; nothing is written before all jobs are known to be right."""

    def sweep(self, arguments: list[str]) -> list:
        """Check every job, then run them as Hydra does."""
        from rowsft.sweep import launcher

        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        batches = self.split_arguments(parser.parse_overrides([*self._parse_config(), *arguments]), None)
        launcher.check(batches[0])
        return super().sweep(arguments)

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Checked already."""


ConfigStore.instance().store(group="hydra/sweeper", name="rowsft", node=SweeperConfig, provider="rowsft")
