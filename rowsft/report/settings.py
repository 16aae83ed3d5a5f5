"""A run's settings as a flat mapping, and which of them say what is compared."""

import json
from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher
from typing import Any

from rowsft.method_info import MethodInfo, from_record
from rowsft.record import Attempt
from rowsft.store import Record
from rowsft.store.identity import BUDGET_KEYS

#: An error about a name shows as many that are like it.
_NEAREST = 8

LEARNING_RATE = "trainer.learning_rate"
#: What a tuning stage may choose beside the rate, for methods that have it.
ALPHA = "method.alpha"

#: Trainer settings that say how a run is watched or reported, not how it is trained.
WATCHING = frozenset(
    f"trainer.{name}"
    for name in ("evaluate", "eval_batch_size", "memory_probe_steps", "timing_warmup_steps", "logging_steps")
)
#: The settings of the budget that say how much is trained.
BUDGET_SETTINGS = tuple(f"budget.{key}" for key in (*BUDGET_KEYS, "default"))


def flatten(node, prefix: str = "") -> dict[str, object]:
    """Return nested mappings as {"a.b": value}; lists and an empty mapping stay values."""
    if not isinstance(node, dict) or not node:
        return {prefix: node} if prefix else {}
    return {
        name: leaf
        for key, value in node.items()
        for name, leaf in flatten(value, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def named(config: dict, group: str) -> str:
    """Return the name a config group goes by: its `name`, else its source or class."""
    part = config.get(group)
    if isinstance(part, dict):
        return str(part.get("name") or part.get("source") or part.get("_target_", "?").rsplit(".", 1)[-1])
    return str(part) if part is not None else "?"


def method_info(record: Record) -> MethodInfo:
    """Return the metadata of a run's method, as its latest attempt that has it keeps it."""
    kept = (attempt.method_info for attempt in reversed(record.attempts))
    return from_record(named(record.config, "method"), next(filter(None, kept), None))


def determining(record: Record) -> dict[str, object]:
    """Return every setting that determines a run's result, flat; a budget only where the method has one."""
    settings = flatten(record.identity)
    if not method_info(record).budgeted:
        return {key: value for key, value in settings.items() if not under(key, ("budget",))}
    return settings


def without_seeds(settings: Mapping[str, object]) -> dict[str, object]:
    """Return the settings but for `seed` and the seeds inside groups, which follow it."""
    return {key: value for key, value in settings.items() if key.rsplit(".", 1)[-1] != "seed"}


def differing(all_settings: Iterable[Mapping[str, object]], absent: bool = False) -> list[str]:
    """Return the keys of which there are several values, sorted.

    absent: whether not to have a setting is a value too. Otherwise it belongs to all: full fine-tuning has no budget.
    """
    seen: dict[str, set[str]] = {}
    count: dict[str, int] = {}
    total = 0
    for settings in all_settings:
        total += 1
        for key, value in settings.items():
            seen.setdefault(key, set()).add(text_of(value))
            count[key] = count.get(key, 0) + 1
    null = {"null"} if absent else set()
    return sorted(key for key, values in seen.items() if len(values | (null if count[key] < total else set())) > 1)


def two_sided(a: Mapping[str, object], b: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """Return {key: {"a": value, "b": value}} of what differs, a side that does not have the key left out."""
    return {
        key: {name: side[key] for name, side in (("a", a), ("b", b)) if key in side}
        for key in dict.fromkeys([*a, *b])
        if key not in a or key not in b or text_of(a[key]) != text_of(b[key])
    }


def text_of(value: object) -> str:
    """Return a value as a key: equal values have equal texts."""
    # Nearly all values are numbers, and json.dumps is slow.
    if type(value) in (int, float):
        return repr(value)
    return f'"{value}"' if type(value) is str else json.dumps(value, sort_keys=True)


def under(key: str, prefixes: Iterable[str]) -> bool:
    """Return whether a dotted key is one of `prefixes` or lies below one."""
    return any(key == prefix or key.startswith(prefix + ".") for prefix in prefixes)


def short(key: str) -> str:
    """Return a setting's name without its group."""
    return key.split(".", 1)[-1]


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Return {key: its name without its group}, the whole key where two would have one name."""
    keys = list(keys)
    names = [short(key) for key in keys]
    return {key: key if names.count(name) > 1 else name for key, name in zip(keys, names, strict=True)}


def endings(key: str) -> list[str]:
    """Return what a dotted name may be called for short: "a.b.c", "b.c" and "c"."""
    parts = key.split(".")
    return [".".join(parts[first:]) for first in range(len(parts))]


def nearest(wanted: str, keys: Iterable[str]) -> list[str]:
    """Return the few keys that are the most like `wanted`, whole or by their endings; `.` and `_` count alike."""

    def plain(text: str) -> str:
        return text.lower().replace("_", ".")

    def likeness(key: str) -> float:
        return max(SequenceMatcher(None, plain(wanted), plain(ending)).ratio() for ending in endings(key))

    return sorted(keys, key=likeness, reverse=True)[:_NEAREST]


def dig(node: Any, *path: str) -> Any:
    """Return the value at a path of nested mappings, None where the path ends early."""
    for key in path:
        node = node.get(key) if isinstance(node, dict) else None
    return node


def primary(result: Attempt, split: str) -> float | None:
    """Return the primary metric of one attempt on a split, None where it was not evaluated."""
    return (result.metrics.get(split) or {}).get(result.primary_metric or "")


def failed_phase(record: Record) -> str | None:
    """Return the phase that the latest attempt failed in, None where nothing is recorded of it."""
    return record.latest.error.phase if record.latest and record.latest.error else None


def failure(record: Record) -> str | None:
    """Return why the latest attempt has no result, on one line; None where nothing is recorded of it."""
    error = record.latest.error if record.latest else None
    if error is None:
        return None
    lines = (error.message or "").strip().splitlines()
    return ": ".join(filter(None, [error.type, *lines[:1]])) or None
