"""What every task shares: splits read once, cut to the limits, refused if empty; facts about the data."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from rowsft.errors import UserError, shortened
from rowsft.tasks.splits import check_limits, limit


class SplitTask(ABC):
    """A task whose examples come from `_read`; subclasses add the head, the encoding and the evaluation."""

    def __init__(self, name: str, max_length: int, limits: Mapping[str, int | None] | None = None):
        if not isinstance(name, str | int | float) or isinstance(name, bool) or not str(name).strip():
            raise UserError(f"task.name={shortened(name)}: expected a name")
        whole_number("task.max_length", max_length, 2, " tokens")
        self.name = str(name)
        self.max_length = max_length
        self.limits = check_limits(limits)

    @abstractmethod
    def _read(self) -> dict[str, list[dict]]:
        """All examples of train, validation and test."""

    @abstractmethod
    def _facts(self) -> dict[str, Any]:
        """source, licence, caveat and sha256 of the data."""

    @cached_property
    def _splits(self) -> dict[str, list[dict]]:
        splits = limit(self._read(), self.limits)
        for name, examples in splits.items():
            if not examples:
                raise UserError(f"task {self.name}: the {name} split is empty; give it data or a larger share")
        return splits

    def splits(self) -> dict[str, list[dict]]:
        """train, validation and test, each a list of dicts with an `id`; read on the first call."""
        return self._splits

    def about(self) -> dict[str, Any]:
        """source, licence, caveat, sizes (after the limits) and sha256 of the data."""
        # Read first: what reading counts is among the facts.
        sizes = {name: len(examples) for name, examples in self.splits().items()}
        return {**self._facts(), "sizes": sizes}


def whole_number(key: str, value: Any, least: int, unit: str = "") -> int:
    """`value` if it is a whole number from `least` on. Raises UserError naming `key`; true is no number."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{key}={shortened(value)}: expected a whole number, at least {least}{unit}")
    return value
