"""An attempt in no record: of rank 1 and above, which compute what rank 0 computes, and of measuring alone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rowsft.record import Attempt


@dataclass
class UnrecordedAttempt:
    """An attempt of which nothing is recorded: fields are kept in memory. `path` is a temporary folder."""

    number: int
    path: Path
    fields: Attempt = field(default_factory=lambda: Attempt(attempt=1, state="running"))

    def update(self, **fields: Any) -> None:
        """Set fields of `rowsft.record.Attempt`, here alone."""
        self.fields = self.fields.changed(**fields)

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
