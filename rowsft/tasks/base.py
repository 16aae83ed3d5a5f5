"""What every task shares: splits read once, cut to the limits, refused if empty; facts about the data."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from rowsft.errors import UserError
from rowsft.tasks.splits import limit


class SplitTask(ABC):
    """A task whose examples come from `_read`; subclasses add the head, the encoding and the evaluation."""

    def __init__(self, name: str, max_length: int, limits: Mapping[str, int | None] | None = None):
        if not isinstance(max_length, int) or max_length < 2:
            raise UserError(f"task.max_length={max_length}: expected a whole number, at least 2 tokens")
        self.name = name
        self.max_length = max_length
        self.limits = dict(limits or {})

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
        return {**self._facts(), "sizes": {name: len(examples) for name, examples in self.splits().items()}}
