"""The values of task.data, checked before any data are read."""

from collections.abc import Mapping
from typing import Any

from rowsft.errors import UserError, shortened
from rowsft.tasks import source_splits
from rowsft.tasks.reading import SEPARATORS
from rowsft.tasks.splits import NAMES

FILES = ("path", "train_path", "validation_path", "test_path")
HUB = ("id", "config", "revision")
KEYS = (*FILES, "hub", "splits", "empty", "separator", "config", "revision", "validation", "test", "split_seed")
EMPTY = ("refuse", "drop")


def checked(data: Any) -> dict[str, Any]:
    """`data` with every key of KEYS. Raises UserError for an unknown key and a value that no data could make right."""
    if not isinstance(data, Mapping):
        raise UserError(f"task.data={shortened(data)}: expected a mapping with the keys {', '.join(KEYS)}")
    for key in data:
        if key not in KEYS:
            raise UserError(f"task.data.{shortened(key)}: no such key; expected {', '.join(KEYS)}")
    for key in (*FILES, "config", "revision"):
        if isinstance(data.get(key), bool | Mapping) or not isinstance(data.get(key), str | int | float | None):
            raise UserError(f"task.data.{key}={shortened(data[key])}: expected text or null")
    for key in FILES[2:]:
        if data.get("path") is not None and data.get(key) is not None:
            raise UserError(
                f"task.data.path={shortened(data['path'])}, task.data.{key}={shortened(data[key])}: give all rows in "
                "one file, or name the training rows task.data.train_path"
            )
    separator = data.get("separator")
    if separator is not None and (not isinstance(separator, str) or separator not in SEPARATORS):
        raise UserError(
            f"task.data.separator={shortened(separator)}: expected {', '.join(SEPARATORS)}, or null for the comma"
        )
    if data.get("empty", "refuse") not in (*EMPTY, None):
        raise UserError(f"task.data.empty={shortened(data['empty'])}: expected {' or '.join(EMPTY)}")
    seed = data.get("split_seed")
    if isinstance(seed, bool) or not isinstance(seed, int | None):
        raise UserError(f"task.data.split_seed={shortened(seed)}: expected a whole number")
    shares = {name: share(name, data.get(name)) for name in NAMES[1:]}
    if sum(shares[name] for name in shares if not data.get(f"{name}_path")) >= 1:
        raise UserError(
            f"task.data.validation={data.get('validation')}, task.data.test={data.get('test')}: nothing is left to "
            "train on; expected a sum below 1"
        )
    own = {"hub": _hub(data.get("hub")), "splits": source_splits.checked(data.get("splits"))}
    return {key: own[key] if key in own else data.get(key) for key in KEYS}


def _hub(hub: Any) -> dict[str, str | None] | None:
    if hub is None:
        return None
    if not isinstance(hub, Mapping):
        raise UserError(f"task.data.hub={shortened(hub)}: expected a mapping with the keys {', '.join(HUB)}, or null")
    for key, value in hub.items():
        if key not in HUB:
            raise UserError(f"task.data.hub.{shortened(key)}: no such key; expected {', '.join(HUB)}")
        if isinstance(value, bool) or not isinstance(value, str | int | float | None):
            raise UserError(f"task.data.hub.{key}={shortened(value)}: expected text or null")
    if hub.get("id") in (None, ""):
        raise UserError("task.data.hub.id: expected the id of a data set, such as org/name")
    return {key: None if hub.get(key) is None else str(hub[key]) for key in HUB}


def share(name: str, value: Any) -> float:
    """task.data.`name` as a share of the training rows. Raises UserError for what is none."""
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise UserError(f"task.data.{name}={shortened(value)}: expected a share between 0 and 1, or null")
    return float(value)
