"""Composition of a sweep's jobs: Hydra once for what they share, plain values put in for what tells them apart.

Hydra takes a tenth of a second a job. Jobs of a sweep differ in a few values, and the value of a key that is there
already changes nothing else: such overrides are taken out, the rest is composed by Hydra (a template), and they are put
into a copy of it. Whatever else an override may do (choose a group, add, delete, refer to another key, give a list) is
part of the template.
"""

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from rowsft.config import typed
from rowsft.config.compose import compose, composed_unresolved
from rowsft.config.names import group_names
from rowsft.config.overrides import quoted
from rowsft.config.settings import check_settings
from rowsft.errors import UserError

_REFERENCE = re.compile(r"\$\{([a-z_][\w]*(?:\.[a-z_]\w*)*)\}", re.IGNORECASE)


class _Beyond(Exception):
    """The jobs' overrides do more than put in plain values: Hydra must compose the whole."""


class ManyComposer:
    """Composes jobs one after the other, keeping what Hydra made for the earlier ones."""

    def __init__(self):
        self._groups = set(group_names())
        self._templates: dict[tuple[str, ...], _Template | None] = {}
        self._parser = OverridesParser.create()
        self._quoted = cache(lambda text: quoted([text])[0])
        self._parsed = cache(self._parse)

    def compose(self, overrides: Sequence[str]) -> dict | None:
        """The resolved configuration as plain data, as `rowsft.config.compose.compose` gives it, key order aside.

        None where only Hydra can tell, and where it is wrong: `rowsft.config.compose.compose` then gives it or says
        why. Its settings are checked; where they are wrong, compose says what is.
        """
        parsed = [self._parsed(text) for text in overrides]
        if any(found is None for found in parsed):
            return None
        plain = [(text, *found) for text, found in zip(overrides, parsed, strict=True) if found]
        rest = tuple(self._quoted(text) for text, found in zip(overrides, parsed, strict=True) if not found)
        if rest not in self._templates:
            self._templates[rest] = _template(rest, self._groups)
        template = self._templates[rest]
        try:
            return None if template is None else template.filled(plain)
        except (_Beyond, UserError):
            return None

    def _parse(self, text: str) -> tuple[str, Any] | tuple[()] | None:
        """Key and value of an override that puts in a plain value, () of any other, None of what does not parse."""
        try:
            override = self._parser.parse_override(self._quoted(text))
        except (HydraException, RecursionError):
            return None
        return (override.key_or_group, override.value()) if self._is_plain(override) else ()

    def _is_plain(self, override: Override) -> bool:
        key = override.key_or_group
        if override.type is not OverrideType.CHANGE or override.package is not None or override.is_sweep_override():
            return False
        if (
            key in self._groups
            or key.split(".")[0] == "hydra"
            or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", key)
        ):
            return False
        value = override.value()
        if isinstance(value, str):
            # References, missing values and escapes have a meaning of their own.
            return not any(mark in value for mark in ("${", "???", "\\"))
        return value is None or isinstance(value, bool | int | float)


class _Template:
    """What Hydra composed for the overrides that jobs share, unresolved, with the places of its references."""

    def __init__(self, plain: dict, rest: Sequence[str], groups: set[str]):
        self.plain, self.rest = plain, rest
        # For a key that one of the shared overrides touches, above or below, the order of overrides would count. Groups
        # are chosen before any value is put in.
        keys = {text.partition("=")[0].lstrip("+~") for text in rest}
        self.touched = sorted(keys - groups)
        self.references: list[tuple[list[str], str, list[str]]] = []
        self._find_references(plain, [])

    def _find_references(self, node: object, path: list[str]) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                if not isinstance(key, str):
                    raise _Beyond
                self._find_references(value, [*path, key])
        elif isinstance(node, list):
            for item in node:
                if isinstance(item, dict | list):
                    self._find_references(item, [*path, "[]"])
                elif isinstance(item, str) and ("${" in item or item == "???"):
                    raise _Beyond
        elif isinstance(node, str) and ("${" in node or node == "???"):
            found = _REFERENCE.fullmatch(node)
            if not found or "[]" in path or path[0] == "tuned":
                raise _Beyond
            self.references.append((path, node, found[1].split(".")))

    def filled(self, plain: Sequence[tuple[str, str, Any]]) -> dict:
        """A copy with the values put in, references followed and the tuned rate chosen."""
        config = _copy(self.plain)
        for _, key, value in plain:
            if any(_overlap(key, touched) for touched in self.touched):
                raise _Beyond
            self._put(config, key.split("."), value)
        if not isinstance(config.get("method"), dict):
            raise _Beyond
        _use_tuned(config, [*self.rest, *(text for text, *_ in plain)])
        for path, text, target in self.references:
            holder = _at(config, path[:-1])
            if holder.get(path[-1]) == text:
                found = _at(config, target)
                if isinstance(found, dict | list) or (isinstance(found, str) and "${" in found):
                    raise _Beyond
                holder[path[-1]] = found
        config["ignores"] = _at(config, ["method"]).pop("ignores", None) or []
        check_settings(config)
        return config

    @staticmethod
    def _put(config: dict, path: list[str], value: object) -> None:
        holder = _at(config, path[:-1])
        if not isinstance(holder, dict) or path[-1] not in holder or isinstance(holder[path[-1]], dict | list):
            raise _Beyond
        holder[path[-1]] = value


def _template(rest: tuple[str, ...], groups: set[str]) -> _Template | None:
    try:
        if any(text.startswith("+") for text in rest):
            # Whether anything reads an added key is looked up there.
            compose(list(rest))
        config = composed_unresolved(list(rest))
        return _Template(typed.plain(config, resolve=False), rest, groups)
    except (UserError, HydraException, OmegaConfBaseException, _Beyond):
        return None


def _use_tuned(config: dict, overrides: Sequence[str]) -> None:
    """As compose does: a tuned table decides the learning rate unless the command line does."""
    table = config.pop("tuned", None)
    given = any(text.lstrip("+").startswith("trainer.learning_rate=") for text in overrides)
    if table is None or given:
        return
    rates, name = table.get("learning_rate"), config["method"].get("name")
    if not isinstance(rates, dict) or set(table) != {"learning_rate"} or not isinstance(name, str):
        raise _Beyond
    if name in rates:
        config["trainer"]["learning_rate"] = rates[name]


def _overlap(key: str, other: str) -> bool:
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def _at(node: Any, path: Sequence[str]) -> Any:
    for part in path:
        if not isinstance(node, dict) or part not in node:
            raise _Beyond
        node = node[part]
    return node


def _copy(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _copy(value) for key, value in node.items()}
    return [_copy(item) for item in node] if isinstance(node, list) else node
