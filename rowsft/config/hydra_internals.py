"""All that the suite needs of Hydra's private modules, in one place: an instance that searches two folders.

Hydra's public `initialize_config_dir` takes one folder. A `SearchPathPlugin` could add the second, but Hydra would load
it into every program of the environment.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.conf import HydraConf
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

__all__ = ["Hydra", "carried_context", "open_hydra", "ray_core", "without_configuration"]


@contextmanager
def open_hydra(shipped: Path, own: Path | None) -> Iterator[Hydra]:
    """An instance of Hydra that searches `shipped` and, where there is one, a user's `own` folder.

    Hydra keeps one instance a process: a caller's own, or the sweep's around a job's, is put back afterwards.
    """
    search_path = create_config_search_path(str(shipped))
    if own is not None:
        search_path.prepend("own", f"file://{own}", anchor="schema")
    holder = GlobalHydra.instance()
    before, holder.hydra = holder.hydra, None
    try:
        hydra = Hydra.create_main_hydra2("rowsft", search_path)
        with _no_schema_of_the_same_name(shipped / "hydra"):
            yield hydra
    finally:
        holder.hydra = before


@contextmanager
def _no_schema_of_the_same_name(shipped: Path) -> Iterator[None]:
    """Hide what plugins have registered under the names of `shipped` files, such as hydra/launcher=ray.

    Hydra would merge a file with it, and say in ten lines that it should not.
    """
    registered: dict[str, Any] = ConfigStore.instance().repo.get("hydra", {})
    hidden = []
    for file in shipped.glob("*/*.yaml"):
        group = registered.get(file.parent.name, {})
        if file.name in group:
            hidden.append((group, file.name, group.pop(file.name)))
    try:
        yield
    finally:
        for group, name, node in hidden:
            group[name] = node


class _AsGiven:
    """In the place of a composer of configurations: gives a job's one override as the whole configuration."""

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Return the configuration of one job, `key=value` of its only override."""
        (override,) = sweep_overrides
        key, _, value = override.partition("=")
        config = cast(DictConfig, OmegaConf.create({"hydra": master_config.hydra}))
        config[key] = value
        return config


def carried_context(folder: Path) -> tuple[HydraContext, DictConfig]:
    """Return what a launcher's `setup` takes, with nothing of the configuration in it. folder: of the sweep."""
    hydra = OmegaConf.structured(HydraConf)
    silent = {"version": 1, "root": None}
    hydra.merge_with({"hydra_logging": silent, "job_logging": silent, "output_subdir": None})
    hydra.merge_with(
        {"sweep": {"dir": str(folder.absolute()), "subdir": "."}, "job": {"chdir": False, "name": "rowsft"}}
    )
    context = HydraContext(config_loader=cast(ConfigLoader, _AsGiven()), callbacks=Callbacks())
    return context, cast(DictConfig, OmegaConf.create({"hydra": hydra}))


def ray_core() -> ModuleType:
    """Return the module of hydra-ray-launcher that starts the tasks and fetches what they return."""
    return import_module("hydra_plugins.hydra_ray_launcher._core")


@contextmanager
def without_configuration() -> Iterator[None]:
    """Take Hydra's own copy of the sweep's configuration away: launchers send it to workers with all singletons."""
    holder = HydraConfig.instance()
    before, holder.cfg = holder.cfg, None
    try:
        yield
    finally:
        holder.cfg = before
