"""Rows of one file or split: columns of checked text, and where each row stands."""

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain
from operator import itemgetter
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
    columns of saved data sets that say so. `parts`: of several files read as one, the first row of each and its source.
    """

    source: str
    unit: str
    prefix: str
    columns: dict[str, list[Any]]
    numbers: Sequence[int]
    rows: Sequence[int]
    counts: Counts = field(default_factory=Counts)
    class_names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    parts: tuple[tuple[int, str], ...] = ()

    def __len__(self) -> int:
        return len(self.numbers)

    def place(self, index: int) -> str:
        """Row `index` of this table as messages name it: the file and its line, say."""
        part = bisect_right(self.parts, self.rows[index], key=itemgetter(0)) - 1
        return place(self.parts[part][1] if self.parts else self.source, self.unit, self.numbers[index])

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


def joined(tables: Sequence[Table], source: str) -> Table:
    """One table of the rows of several files of one data set, in their order, counted through."""
    if len(tables) == 1:
        return tables[0]
    first = tables[0]
    starts = [0, *accumulate(map(len, tables))]
    return replace(
        first,
        source=f"{source}, split {first.prefix}",
        columns={name: list(chain.from_iterable(t.columns[name] for t in tables)) for name in first.columns},
        numbers=array("q", chain.from_iterable(table.numbers for table in tables)),
        rows=range(starts[-1]),
        counts=Counts(sum(table.counts.blank_lines for table in tables)),
        parts=tuple((start, table.source) for start, table in zip(starts, tables, strict=False)),
    )
