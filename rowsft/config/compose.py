"""Hydra composition, with every mistake in a name said in one line."""

import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rowsft import config_folders
from rowsft.config import typed
from rowsft.config.instantiate import check_added
from rowsft.config.overrides import UNREADABLE, check_choice, kept_as_text, parse_override
from rowsft.config.settings import check_settings
from rowsft.errors import UserError, shortened
from rowsft.output import redact
from rowsft.store.ignored import check_rules

CONFIG_FOLDER = config_folders.SHIPPED
# A sweep composes every job before the first: what its jobs look names up in is composed once a process.
_known_groups: dict[Path | None, list[str]] = {}
_base_configs: dict[tuple[Path | None, tuple[str, ...]], DictConfig] = {}


def compose(overrides: list[str]) -> DictConfig:
    """Compose conf/config.yaml with `overrides` and resolve it. Raises UserError for a wrong group, name or key."""
    overrides = quoted(overrides)
    with _open_hydra() as hydra, _said_in_one_line(overrides):
        base = check_names(hydra, overrides)
        config = hydra.compose_config("config", overrides, run_mode=RunMode.RUN, with_log_configuration=False)
        config = config.copy()
        OmegaConf.set_struct(config, False)
        config.pop("hydra", None)
        _use_tuned_learning_rate(config, overrides)
        raw = OmegaConf.to_container(config, resolve=False)
        OmegaConf.resolve(config)
        redact.learn(raw, OmegaConf.to_container(config))
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            raise UserError(f"{', '.join(missing)}: no value given; add {missing[0]}=... to the command")
        declare_ignored(config)
        check_settings(config)
        check_added(config, base)
    return config


def sweep(overrides: list[str]) -> list[int]:
    """Run every job that `overrides` span through Hydra's sweeper and launcher; returns the jobs' exit codes."""
    overrides = quoted(overrides)
    with _open_hydra() as hydra, _said_in_one_line(overrides):
        check_names(hydra, overrides)
        shared = hydra.compose_config("config", overrides, run_mode=RunMode.MULTIRUN, with_log_configuration=False)
        try:
            # Hydra writes the sweep's command beside the runs before it looks at the jobs.
            with _put_back(Path(shared.hydra.sweep.dir) / "multirun.yaml"):
                batches = hydra.multirun("config", lambda _: None, overrides, with_log_configuration=False)
        except OSError as error:
            raise UserError(f"store: the sweep cannot write there ({error}); choose another, store=FOLDER") from error
    # Hydra's own sweeper returns a list of batches; others (Optuna's, say) return nothing: their launcher has reported.
    return [job.return_value for batch in batches or [] for job in batch]


def composed_unresolved(overrides: list[str]) -> DictConfig:
    """What Hydra alone makes of overrides that it can read: nothing is checked, resolved or tuned yet."""
    with _open_hydra() as hydra:
        config = hydra.compose_config("config", overrides, run_mode=RunMode.RUN, with_log_configuration=False)
    OmegaConf.set_struct(config, False)
    config.pop("hydra", None)
    return config


def group_names() -> list[str]:
    """Every configuration group, nested ones as `group/sub`."""
    with _open_hydra() as hydra:
        return _groups(hydra)


def options(group: str) -> list[str]:
    """Every name that `group=` accepts, nested ones as `sub/name`."""
    with _open_hydra() as hydra:
        return _options(hydra, group)


def quoted(overrides: list[str]) -> list[str]:
    """The overrides with quotes around values that Hydra's grammar cannot read bare: lowest(taylor), ~/data.csv.

    Each part of a comma list is taken by itself. What Hydra reads as it stands stays as it stands.
    """
    parser = _parser()
    fixed = [text if _parses(parser, text) else _with_quotes(parser, text) for text in overrides]
    return [kept_as_text(parser, text) for text in fixed]


@cache
def _parser() -> OverridesParser:
    """Hydra's parser of overrides; making one costs as much as parsing with it."""
    return OverridesParser.create()


def swept_values(setting: str) -> tuple[str, list[str]]:
    """The key and the values of "key=a,b,c", as Hydra tells them apart: [a,b],[c] are two. Neither where it cannot."""
    parser = OverridesParser.create()
    try:
        override = parser.parse_override(*quoted([setting]))
    except UNREADABLE:
        return "", []
    if override.is_sweep_override():
        return override.key_or_group, list(override.sweep_string_iterator())
    return override.key_or_group, [override.get_value_element_as_str()] if override.value() not in ("", None) else []


def _parses(parser: OverridesParser, text: str) -> bool:
    try:
        parser.parse_override(text)
    except UNREADABLE:
        return False
    return True


def _with_quotes(parser: OverridesParser, text: str) -> str:
    key, sign, value = text.partition("=")
    if not sign or any(mark in value for mark in "\"'{}[]"):
        return text
    # Commas inside parentheses belong to the name: labelwise(taylor,max).
    parts = re.findall(r"(?:\([^()]*(?:\([^()]*\)[^()]*)*\)|[^,()])+", value)
    fixed = ",".join(part if _parses(parser, f"{key}={part}") else f"'{part}'" for part in parts)
    return f"{key}={fixed}" if _parses(parser, f"{key}={fixed}") else text


def check_names(hydra: Hydra, overrides: list[str]) -> DictConfig | None:
    """Raise UserError for the first override that names an unknown group, option or key.

    Returns what the group choices alone give, None where they do not go together.
    """
    parser = OverridesParser.create(config_loader=hydra.config_loader)
    parsed = [parse_override(parser, text) for text in overrides]
    groups = _groups(hydra)
    choices = [override for override in parsed if override.key_or_group in groups]
    for override in choices:
        check_choice(override)
        for name in _names(override):
            known = _options(hydra, override.key_or_group)
            if name not in known:
                raise UserError(
                    f"{override.key_or_group}={name}: no such {override.key_or_group}; known: {', '.join(known)}"
                )
            config_folders.check_file(override.key_or_group, name)
    base = _base_config(hydra, choices)
    for override in parsed:
        if override not in choices and not override.is_add() and not override.is_force_add() and base is not None:
            _check_key(override.key_or_group, base, groups)
    return base


@contextmanager
def _said_in_one_line(overrides: list[str]) -> Iterator[None]:
    """Turn whatever composing raises into one line: it reads nothing but what the user gave.

    Hydra and OmegaConf raise TypeError, ValueError, AttributeError and RecursionError for some of it.
    """
    try:
        yield
    except MissingConfigException as error:
        # A defaults list names it; what the command names has been looked up.
        named, blamed = error.missing_cfg_file, shortened(" ".join(overrides), 200)
        raise UserError(f"{named}: no such file; known: {', '.join(error.options or [])}; look at {blamed}") from error
    except (UserError, OSError):
        raise
    except RecursionError as error:
        longest = shortened(max(overrides, key=len, default=""))
        raise UserError(f"{longest}: nested too deep, or a value that refers to itself; write it flat") from error
    except Exception as error:
        said = _one_line(error)
        # OmegaConf knows the key that could not be worked out, not the override that is to blame.
        blamed = [text for text in overrides if "${" in text] or overrides
        if blamed and not any(text in said for text in blamed):
            said = f"{said}; look at {shortened(' '.join(blamed), 200)}"
        raise UserError(said) from error


@contextmanager
def _put_back(file: Path) -> Iterator[None]:
    """Leave `file` and its folder as they were where the block refuses what it was given: no job has started then."""
    content = file.read_bytes() if file.is_file() else None
    made = next((folder for folder in reversed(file.parents) if not folder.exists()), None)
    try:
        yield
    except UserError:
        if content is not None:
            file.write_bytes(content)
        elif file.is_file():
            file.unlink()
            for folder in file.parents:
                if made is not None and folder.is_relative_to(made) and not any(folder.iterdir()):
                    folder.rmdir()
        raise


@contextmanager
def _open_hydra() -> Iterator[Hydra]:
    """Hydra keeps one instance a process: a caller's own, or the sweep's around a job's, is put back afterwards."""
    own = config_folders.opened()
    search_path = create_config_search_path(str(CONFIG_FOLDER))
    if own is not None:
        search_path.prepend("own", f"file://{own}", anchor="schema")
    holder = GlobalHydra.instance()
    before, holder.hydra = holder.hydra, None
    try:
        yield Hydra.create_main_hydra2("rowsft", search_path)
    finally:
        holder.hydra = before


def _groups(hydra: Hydra) -> list[str]:
    own = config_folders.own()
    if own not in _known_groups:
        found, pending = [], hydra.config_loader.list_groups("")
        while pending:
            group = pending.pop()
            found.append(group)
            pending += [f"{group}/{child}" for child in hydra.config_loader.list_groups(group)]
        _known_groups[own] = sorted(found)
    return _known_groups[own]


def _options(hydra: Hydra, group: str) -> list[str]:
    loader = hydra.config_loader
    names = list(loader.get_group_options(group, results_filter=ObjectType.CONFIG))
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
        if part not in node:
            known = sorted(str(name) for name in node if not str(name).startswith("_"))
            if not walked:
                known = sorted({*known, *(group for group in groups if "/" not in group)})
            close = difflib.get_close_matches(part, known, n=1)
            hint = f"did you mean {'.'.join([*walked, close[0]])}? " if close else ""
            where = ".".join(walked) or "the configuration"
            raise UserError(f"{key}: no such key in {where}; {hint}known: {', '.join(known)}")
        walked.append(part)
        node = node._get_node(part)
        # A key under a node that is null by default has nothing to be compared with.
        if node is None or node._is_none():
            return


def _use_tuned_learning_rate(config: DictConfig, overrides: list[str]) -> None:
    """A tuned table decides the learning rate unless the command line does.

    The table itself is dropped: what was tuned for another method is no part of this run.
    """
    table = config.pop("tuned", None)
    said = any(text.lstrip("+").startswith("trainer.learning_rate=") for text in overrides)
    if table is None:
        return
    rates = table.get("learning_rate") if isinstance(table, DictConfig) and set(table) == {"learning_rate"} else None
    if not isinstance(rates, DictConfig):
        raise UserError(f"tuned={shortened(table)}: expected {{learning_rate: {{<method>: <rate>, ...}}}} or null")
    for name, rate in rates.items():
        typed.check(f"tuned.learning_rate.{name}", rate, float, "conf/config.yaml")
    name = config.get("method", {}).get("name")
    if not said and name in rates:
        config.trainer.learning_rate = rates[name]


def declare_ignored(config: DictConfig) -> None:
    """Move what the method says it ignores to the top level: it concerns the run's identity, not the method's class."""
    if "ignores" in config:
        raise UserError("ignores: nothing reads this key; a method says what it ignores in method.ignores")
    rules = config.method.pop("ignores", None) if isinstance(config.get("method"), DictConfig) else None
    config.ignores = (
        [] if rules is None else check_rules(OmegaConf.to_container(rules) if OmegaConf.is_config(rules) else rules)
    )


def _one_line(error: Exception) -> str:
    parts = [line.strip() for source in (error, error.__cause__) if source for line in str(source).splitlines()]
    return " ".join(part for part in parts if part)
