"""Splits that depend on content alone: never on file order, a seed of the run, or a library's random generator."""

import hashlib
from collections.abc import Callable, Mapping

from rowsft.errors import UserError

NAMES = ("train", "validation", "test")


def hash_key(text: str) -> str:
    """sha256 of `text` in hexadecimal: the sort key of every content-based choice here."""
    return hashlib.sha256(text.encode()).hexdigest()


def fold(text: str) -> str:
    """`text` without differences in case and white space: two texts that fold alike count as the same."""
    return " ".join(text.casefold().split())


def split_by_hash(
    examples: list[dict], group: Callable[[dict], str], validation: int, test: int, seed: int = 0
) -> dict[str, list[dict]]:
    """Deal examples out so that all of one `group` land in the same split.

    Groups in the order of their hash fill test until it holds `test` examples, then validation, and train gets the
    rest. A group is never cut, so a split may exceed its size by the rest of its last group.
    """
    groups: dict[str, list[dict]] = {}
    for example in examples:
        groups.setdefault(group(example), []).append(example)
    splits: dict[str, list[dict]] = {name: [] for name in NAMES}
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

    Raises UserError for an unknown split name or a limit below 1.
    """
    for name, most in limits.items():
        if name not in NAMES:
            raise UserError(f"task.limits.{name}: no such split; expected {', '.join(NAMES)}")
        if most is not None and most < 1:
            raise UserError(f"task.limits.{name}={most}: expected 1 or more, or null for all examples")
    return {name: _smallest(examples, limits.get(name)) for name, examples in splits.items()}


def _smallest(examples: list[dict], most: int | None) -> list[dict]:
    if most is None or most >= len(examples):
        return examples
    kept = set(sorted((example["id"] for example in examples), key=hash_key)[:most])
    return [example for example in examples if example["id"] in kept]
