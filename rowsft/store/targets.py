"""`_target_`s that have moved: a run keeps the name, and so the id, that it had when its class was elsewhere."""

from typing import Any

#: What a `_target_` began with when the first runs were recorded -> where the module is now.
MOVED = {
    "baselines": "rowsft.baselines",
    "rowsft.row_sft": "rowsft.methods.row_sft",
    "rowsft.track": "rowsft.tracking.tracker",
}
_FORMER = {new: old for old, new in MOVED.items()}


def importable(target: Any) -> Any:
    """A recorded or configured `_target_` as Python imports it; anything else as it is."""
    return _renamed(target, MOVED)


def recorded(target: Any) -> Any:
    """The one form of a `_target_` that ids are made of: the name that it had first."""
    return _renamed(target, _FORMER)


def _renamed(target: Any, names: dict[str, str]) -> Any:
    for old, new in names.items():
        if isinstance(target, str) and target.startswith(f"{old}."):
            return new + target.removeprefix(old)
    return target
