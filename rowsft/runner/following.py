"""What rank 1 and above have in the place of a record: they compute what rank 0 computes, and keep nothing of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rowsft.record import Attempt


@dataclass
class UnrecordedAttempt:
    """An attempt of which nothing is recorded. `path` is a temporary folder: only rank 0 writes into the store."""

    number: int
    path: Path
    fields: Attempt = field(default_factory=lambda: Attempt(attempt=1, state="running"))

    def update(self, **fields: Any) -> None:
        """Keep nothing."""

    def write_predictions(self, rows: list[dict]) -> None:
        """Keep nothing."""

    def write_curve(self, rows: list[dict]) -> None:
        """Keep nothing."""

    def write_memory(self, rows: list[dict]) -> None:
        """Keep nothing."""

    def write_folder(self, name: str, fill: Callable[[Path], object]) -> None:
        """Keep nothing."""

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty folder for the block."""
        folder = self.path / "scratch"
        folder.mkdir()
        yield folder
