"""Files that a configuration names and that are not here: a plan goes on without them, a run would end."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rowsft.assets import python_reference
from rowsft.errors import shortened
from rowsft.tasks.data_settings import FILES
from rowsft.tasks.reading import is_file_name


def missing_files(config: DictConfig) -> list[str]:
    """A line for every file or folder of `task.data`, of each task of a mix, and of `trainer.forgetting` that is not
    here. Names such as org/name, which are those of the hub, are passed over."""
    groups = {name: OmegaConf.to_container(config[name], resolve=True) for name in ("task", "trainer")}
    return [
        f"{key}={shortened(value, 200)}: no such {_kind(value)}"
        for key, value in _paths("", groups)
        if value != python_reference.NAME and not Path(value).expanduser().exists() and _kind(value)
    ]


def _paths(where: str, settings: Mapping[Any, Any]) -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _paths(f"{where}{name}.", value)
        elif name in FILES and value and where.endswith(("data.", "trainer.forgetting.")):
            yield f"{where}{name}", str(value)


def _kind(value: str) -> str:
    if is_file_name(value):
        return "file or folder here; a run ends there"
    return "" if "/" in value else "file or folder here; a run asks the hub for it"
