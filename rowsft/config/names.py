"""The names that a command line may use: groups, the files of a group, and keys; each looked up before composing."""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from rowsft import config_folders, renamed
from rowsft.config.hydra_internals import Hydra, open_hydra
from rowsft.config.overrides import check_choice, parse_override
from rowsft.errors import UserError

# A sweep composes every job before the first: what its jobs look names up in is composed once a process.
_known_groups: dict[Path | None, list[str]] = {}
_base_configs: dict[tuple[Path | None, tuple[str, ...]], DictConfig] = {}


@contextmanager
def opened_hydra() -> Iterator[Hydra]:
    """Hydra with the shipped configurations and the user's own."""
    with open_hydra(config_folders.SHIPPED, config_folders.opened()) as hydra:
        yield hydra


def group_names() -> list[str]:
    """Every configuration group, nested ones as `group/sub`."""
    with opened_hydra() as hydra:
        return _groups(hydra)


def options(group: str) -> list[str]:
    """Every name that `group=` accepts, nested ones as `sub/name`."""
    with opened_hydra() as hydra:
        return _options(hydra, group)


def check_names(hydra: Hydra, overrides: list[str]) -> DictConfig | None:
    """Raise UserError for the first override that names an unknown group, option or key.

    Returns what the group choices alone give, None where they do not go together.
    """
    parser = OverridesParser.create(config_loader=hydra.config_loader)
    parsed = [parse_override(parser, text) for text in overrides]
    groups = _groups(hydra)
    choices = [override for override in parsed if override.key_or_group in groups]
    for override in choices:
        if not (config_folders.SHIPPED / override.key_or_group.split("/")[0]).is_dir():
            known = sorted(folder.name for folder in config_folders.SHIPPED.iterdir() if folder.is_dir())
            raise UserError(f"{override.key_or_group}: nothing reads this group; known: {', '.join(known)}")
        check_choice(override)
        for name in _names(override):
            config_folders.check_file(override.key_or_group, name)
            known = _options(hydra, override.key_or_group)
            if name not in known:
                raise UserError(
                    f"{override.key_or_group}={name}: no such {override.key_or_group}; known: {', '.join(known)}"
                )
    base = _base_config(hydra, choices)
    for override in parsed:
        if override not in choices and not override.is_add() and not override.is_force_add() and base is not None:
            _check_key(override.key_or_group, base, groups)
    return base


def _groups(hydra: Hydra) -> list[str]:
    own = config_folders.own()
    if own not in _known_groups:
        groups, pending = [], hydra.config_loader.list_groups("")
        while pending:
            group = pending.pop()
            groups.append(group)
            pending += [f"{group}/{child}" for child in hydra.config_loader.list_groups(group)]
        _known_groups[own] = sorted(groups)
    return _known_groups[own]


def _options(hydra: Hydra, group: str) -> list[str]:
    loader = hydra.config_loader
    files = loader.get_group_options(group, results_filter=ObjectType.CONFIG)
    names = [name for name in files if not config_folders.is_base(name)]
    for child in loader.list_groups(group):
        names += [f"{child}/{name}" for name in _options(hydra, f"{group}/{child}")]
    return sorted(names)


def _names(override: Override) -> list[str]:
    if override.is_delete() or override.value() is None:
        return []
    if override.is_sweep_override():
        return list(override.sweep_string_iterator())
    value = override.value()
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def _base_config(hydra: Hydra, choices: list[Override]) -> DictConfig | None:
    """The configuration that the group choices alone give (of a swept choice, the first), to look keys up in."""
    single = tuple(f"{choice.key_or_group}={_first(choice)}" for choice in choices if _names(choice))
    key = (config_folders.own(), single)
    if key not in _base_configs:
        try:
            _base_configs[key] = hydra.compose_config(
                "config", list(single), run_mode=RunMode.RUN, with_log_configuration=False
            )
        except (HydraException, OmegaConfBaseException):
            return None
    return _base_configs[key]


def _first(choice: Override) -> str:
    """What a choice takes; of a swept one, the first."""
    return _names(choice)[0] if choice.is_sweep_override() else choice.get_value_element_as_str()


def _check_key(key: str, base: DictConfig, groups: list[str]) -> None:
    node: Any = base
    walked: list[str] = []
    for part in key.split("."):
        if not isinstance(node, DictConfig):
            return
        # Not "in": a key with ??? is none to it.
        if part not in node.keys():  # noqa: SIM118
            known = sorted(str(name) for name in node if not str(name).startswith("_"))
            if not walked:
                known = sorted({*known, *(group for group in groups if "/" not in group)})
            close = difflib.get_close_matches(part, known, n=1)
            hint = f"did you mean {'.'.join([*walked, close[0]])}? " if close else ""
            if instead := renamed.KEYS.get(key):
                hint = f"write {instead} instead; "
            where = ".".join(walked) or "the configuration"
            raise UserError(f"{key}: no such key in {where}; {hint}known: {', '.join(known)}")
        walked.append(part)
        node = node._get_node(part)
        # A key under a node that is null by default has nothing to be compared with.
        if node is None or node._is_none():
            return
