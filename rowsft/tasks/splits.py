"""Splits that depend on content alone: never on file order, a seed of the run, or a library's random generator."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from rowsft.errors import UserError, shortened

Example = TypeVar("Example")

NAMES = ("train", "validation", "test")


def hash_key(text: str) -> str:
    """sha256 of `text` in hexadecimal: the sort key of every content-based choice here."""
    return hashlib.sha256(text.encode()).hexdigest()


def fold(text: str) -> str:
    """`text` without differences in case and white space: two texts that fold alike count as the same."""
    return " ".join(text.casefold().split())


def split_by_hash(
    examples: Sequence[Example], group: Callable[[Example], str], validation: int, test: int, seed: int = 0
) -> dict[str, list[Example]]:
    """Deal examples out so that all of one `group` land in the same split.

    Groups in the order of their hash fill test until it holds `test` examples, then validation, and train gets the
    rest. A group is never cut, so a split may exceed its size by the rest of its last group.
    """
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(group(example), []).append(example)
    splits: dict[str, list[Example]] = {name: [] for name in NAMES}
    for key in sorted(groups, key=lambda name: hash_key(f"{seed}:{name}")):
        if len(splits["test"]) < test:
            splits["test"] += groups[key]
        elif len(splits["validation"]) < validation:
            splits["validation"] += groups[key]
        else:
            splits["train"] += groups[key]
    return splits


def limit(splits: dict[str, list[dict]], limits: Mapping[str, int | None]) -> dict[str, list[dict]]:
    """Keep at most `limits[name]` examples of each split (None: all): those with the smallest hash of their id.

    Raises UserError for limits that `check_limits` refuses.
    """
    check_limits(limits)
    return {name: _smallest(examples, limits.get(name)) for name, examples in splits.items()}


def check_limits(limits: Any) -> dict[str, int | None]:
    """task.limits as a dict. Raises UserError for an unknown split and for what is no whole number above 0 or null."""
    if limits is None:
        return {}
    if not isinstance(limits, Mapping):
        raise UserError(f"task.limits={shortened(limits)}: expected a mapping such as {{train: 100}}")
    for name, most in limits.items():
        if name not in NAMES:
            raise UserError(f"task.limits.{shortened(name)}: no such split; expected {', '.join(NAMES)}")
        if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
            raise UserError(
                f"task.limits.{name}={shortened(most)}: expected a whole number, at least 1, or null for all examples"
            )
    return dict(limits)


def _smallest(examples: list[dict], most: int | None) -> list[dict]:
    if most is None or most >= len(examples):
        return examples
    kept = set(sorted((example["id"] for example in examples), key=hash_key)[:most])
    return [example for example in examples if example["id"] in kept]
