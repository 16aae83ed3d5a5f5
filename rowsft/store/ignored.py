"""Which settings cannot change what a method does, by `ignores` in its YAML; docs/runs.md has the form.

A composed config carries the declaration of its method under the top-level key `ignores`. In a config that was recorded
before there was one, it is looked up in conf/method, that of the package first.
"""

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from rowsft import config_folders
from rowsft.errors import UserError
from rowsft.store.targets import recorded

_RULE = re.compile(r"(?P<keys>[\w.]+(?:\s*,\s*[\w.]+)*)(?:\s+if\s+(?P<when>[\w.]+)(?:=(?P<values>\S.*))?)?")


def ignored(config: dict) -> list[str]:
    """The dotted keys of `config` that its method ignores at these settings; a key of a group stands for all below it.

    Raises UserError for a rule that does not read KEY[, KEY ...] [if KEY[=VALUE|VALUE ...]].
    """
    return list(ignored_by_rule(config))


def ignored_by_rule(config: dict) -> dict[str, str]:
    """The same keys, each with the rule that says so. Raises UserError as `ignored` does."""
    rules = config.get("ignores")
    if rules is None:
        rules = _declared(config.get("method"))
    return dict(_applied(config, check_rules(rules)))


def check_rules(rules: object) -> Sequence[str]:
    """`rules` as they are. Raises UserError where they are no list of rules."""
    if not isinstance(rules, list | tuple):
        raise UserError(f"method.ignores={rules!r}: expected a list of keys, such as [budget, trainer.warm_head]")
    for rule in rules:
        if not isinstance(rule, str) or not _RULE.fullmatch(rule.strip()):
            raise UserError(f"method.ignores: {rule!r}: expected KEY, KEY if KEY, or KEY if KEY=VALUE|VALUE")
    return rules


def named_keys(rules: Sequence[str]) -> list[str]:
    """Every key that a rule names, those that it asks for a value among them."""
    matches = [_RULE.fullmatch(rule.strip()) for rule in rules]
    named = [part for match in matches if match for part in match.group("keys", "when") if part]
    return [key.strip() for part in named for key in part.split(",")]


def _applied(config: dict, rules: Iterable[str]) -> Iterable[tuple[str, str]]:
    for rule in rules:
        match = _RULE.fullmatch(rule.strip())
        assert match, "check_rules has read it"
        keys, when, values = match.group("keys", "when", "values")
        if when is not None:
            value = _value(config, when)
            if value is None or (values and not _is_one_of(str(value), values)):
                continue
        yield from ((key.strip(), rule.strip()) for key in keys.split(","))


def _is_one_of(value: str, values: str) -> bool:
    """Whether a value is one of VALUE|VALUE, where * stands for any text."""
    text, known = ("".join(each.split()) for each in (value, values))
    return any(fnmatchcase(text, each) for each in known.split("|"))


def _value(config: dict, key: str) -> object:
    node: object = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node


def _declared(method: object) -> Sequence[str]:
    if not isinstance(method, dict):
        return ()
    key = (_module(method), str(method.get("name")))
    for folder in config_folders.folders():
        if key in (rules := _rules(folder)):
            return rules[key]
    return ()


@cache
def _rules(folder: Path) -> dict[tuple[str, str], Sequence[str]]:
    """(module, name) of every method of a folder of configurations -> its rules."""
    contents = [config_folders.read(path) for path in sorted((folder / "method").glob("**/*.yaml"))]
    return {(_module(content), str(content.get("name"))): content.get("ignores") or () for content in contents}


def _module(method: dict) -> str:
    return str(recorded(method.get("_target_"))).rpartition(".")[0]
