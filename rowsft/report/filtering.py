"""Which runs a listing shows and in which order: conditions such as `method=lora value>0.8`, and a key to sort by.

A run is a mapping of keys to values: the columns of the listing, and its settings under dotted keys. A tuple holds
several names of one thing, each of which counts; a key that a run does not have is null.
"""

import json
import math
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import ge, gt, le, lt

from rowsft.errors import UserError, shortened
from rowsft.report.settings import endings, nearest, short

Rows = Mapping[str, Mapping[str, object]]

_CONDITION = re.compile(r"([^=!<>~]+)(!=|<=|>=|==?|<|>|~)(.*)", re.DOTALL)
_ORDERS: dict[str, Callable] = {"<": lt, "<=": le, ">": gt, ">=": ge}
_MOMENT = re.compile(r"\d{4}(-\d\d(-\d\d([T ]\d\d(:\d\d(:\d\d)?)?)?)?)?")
_MOMENTS = ("started", "started_at")


@dataclass(frozen=True)
class Condition:
    """One condition as it was typed, with its key spelled out."""

    text: str
    key: str
    sign: str
    value: str

    def holds(self, value: object) -> bool:
        """Return whether a run whose value is `value` is meant."""
        if self.sign == "~":
            return any(self.value.lower() in _plain(name).lower() for name in _names(value))
        if self.sign in ("=", "!="):
            equal = any(self._equals(name) for name in _names(value))
            return equal is (self.sign == "=")
        if self.key in _MOMENTS:
            return isinstance(value, str) and _ORDERS[self.sign](*self._moments(value))
        return _is_number(value) and _ORDERS[self.sign](value, float(self.value))

    def _equals(self, value: object) -> bool:
        if _is_number(value):
            return _number(self.value) == value
        if isinstance(value, str):
            return len(set(self._moments(value))) == 1 if self.key in _MOMENTS else value == self.value
        return _plain(value) == self.value.replace(" ", "")

    def _moments(self, value: str) -> tuple[str, str]:
        """A day is as long as a day: what is compared is as precise as what was typed."""
        return value[: len(self.value)].replace(" ", "T"), self.value.replace(" ", "T")


def matching(rows: Rows, texts: Iterable[str]) -> list[str]:
    """Return the ids of the runs that every condition holds for. `texts` hold any number of conditions each.

    Raises UserError for what does not read KEY SIGN VALUE, a key that no run has, and an order of what has none.
    """
    conditions = [_condition(word, rows) for text in texts for word in _words(text)]
    for condition in conditions if rows else ():
        _check(condition, [row.get(condition.key) for row in rows.values()])
    return [name for name, row in rows.items() if all(c.holds(row.get(c.key)) for c in conditions)]


def ordered(rows: Rows, sort: str) -> list[str]:
    """Return the ids of the runs by the key `sort`, falling after a minus sign; those without a value come last.

    Raises UserError for a key that no run has, and for none.
    """
    falling = sort.startswith("-")
    if not sort.removeprefix("-").strip():
        raise UserError(f"--sort {sort!r}: expected a key such as value, or -value for the largest first")
    key = _valued(_resolved(sort.removeprefix("-"), rows, f"--sort {sort}"))
    with_value = [name for name, row in rows.items() if row.get(key) is not None]
    without = [name for name in rows if name not in set(with_value)]
    return [*sorted(with_value, key=lambda name: _rank(rows[name][key]), reverse=falling), *without]


def _words(text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"--where {shortened(text)}: {error}; close the quotation") from error
    # An empty variable of a script must not mean every run.
    return words or [""]


def _condition(text: str, rows: Rows) -> Condition:
    match = _CONDITION.fullmatch(text)
    if not match or not match[3]:
        raise UserError(
            f"--where {shortened(text) or repr(text)}: expected KEY=VALUE, or !=, <, <=, >, >= or ~ (contains) in "
            "place of =, several with blanks between them"
        )
    key, sign, value = match.groups()
    key = _resolved(key, rows, f"--where {shortened(text)}")
    sign = sign.replace("==", "=")
    return Condition(text, _valued(key) if sign in _ORDERS else key, sign, value)


def _valued(key: str) -> str:
    """Where numbers are asked for, a metric is its value."""
    return "value" if key == "metric" else key


def _check(condition: Condition, values: list[object]) -> None:
    about = f"--where {shortened(condition.text)}"
    if condition.key in _MOMENTS:
        anything = condition.sign == "~" or (condition.value == "null" and condition.sign not in _ORDERS)
        if not anything and not _MOMENT.fullmatch(condition.value):
            raise UserError(f"{about}: expected a time (UTC) such as 2026-11-26 or 2026-11-26T14:30")
    elif condition.sign in _ORDERS:
        if any(value is not None for value in values) and not any(_is_number(value) for value in values):
            raise UserError(f"{about}: {condition.key} is not a number; use =, != or ~")
        limit = _number(condition.value)
        if limit is None or math.isnan(limit):
            raise UserError(f"{about}: expected a number after {condition.sign}")


def _resolved(name: str, rows: Rows, about: str) -> str:
    """Return the whole key that `name` stands for: itself, a name without its group, or the end of a single key."""
    known = dict.fromkeys(key for row in rows.values() for key in row)
    if name in known or not known:
        return name
    for ends in ([key for key in known if short(key) == name], [key for key in known if name in endings(key)]):
        if len(ends) == 1:
            return ends[0]
        if ends:
            raise UserError(f"{about}: {name} may be {', '.join(sorted(ends))}; give one of them")
    raise UserError(f"{about}: no run has the key {shortened(name)}; the nearest: {', '.join(nearest(name, known))}")


def _names(value: object) -> tuple[object, ...]:
    return value if isinstance(value, tuple) else (value,)


def _plain(value: object) -> str:
    """Return a value as it is typed for Hydra: [a,b], true, null."""
    if isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).replace('"', "")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _rank(value: object) -> tuple[int, float, str]:
    """Return what to sort by: numbers first, then texts."""
    if isinstance(value, int | float):
        return 0, value, ""
    return 1, 0, ", ".join(map(_plain, _names(value)))
