"""Rows of one file or split: columns of checked text, and where each row stands."""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rowsft.errors import UserError
from rowsft.tasks.reading.cells import checked, checked_list, place
from rowsft.tasks.reading.counts import Counts
from rowsft.tasks.reading.fields import is_list


@dataclass(frozen=True)
class Table:
    """`columns`: name -> one text a row, or one list of texts where the name ends with []. `numbers`: each row's place
    in the file, in units of `unit`, from 1.

    `rows` counts the rows of the whole file from 0 and, with `prefix`, names them: a row's id is the same in every
    format. `source` opens the messages about the table. `class_names`: column -> what its class numbers mean, for the
    columns of saved data sets that say so.
    """

    source: str
    unit: str
    prefix: str
    columns: dict[str, list[Any]]
    numbers: Sequence[int]
    rows: Sequence[int]
    counts: Counts = field(default_factory=Counts)
    class_names: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.numbers)

    def place(self, index: int) -> str:
        """Row `index` of this table as messages name it: the file and its line, say."""
        return place(self.source, self.unit, self.numbers[index])

    def ids(self) -> list[str]:
        """One stable name a row."""
        return [f"{self.prefix}-{row}" for row in self.rows]

    def take(self, indices: Sequence[int]) -> "Table":
        """The table of these rows alone, in the order given."""
        columns = {name: [values[i] for i in indices] for name, values in self.columns.items()}
        numbers, rows = (array("q", [values[i] for i in indices]) for values in (self.numbers, self.rows))
        return replace(self, columns=columns, numbers=numbers, rows=rows)


def collected(
    cells_by_row: Iterable[tuple[int, Sequence[Any]]],
    columns: Sequence[str],
    source: str,
    unit: str,
    prefix: str,
    counts: Counts,
) -> Table:
    """The table of the rows (place, cells of `columns`) that a format's reader gives, every cell checked.

    Raises UserError for a cell that is no text and a table without rows.
    """
    kept: list[list[Any]] = [[] for _ in columns]
    numbers = array("q")
    adders = [
        (name, checked_list if is_list(name) else checked, values.append)
        for name, values in zip(columns, kept, strict=True)
    ]
    for number, cells in cells_by_row:
        for (name, check, add), cell in zip(adders, cells, strict=True):
            add(check(cell, name, source, unit, number))
        numbers.append(number)
    if not numbers:
        raise UserError(f"{source}: no rows; expected at least one")
    return Table(source, unit, prefix, dict(zip(columns, kept, strict=True)), numbers, range(len(numbers)), counts)
