"""Rows of one file or split: columns of checked text, and where each row stands."""

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, field, replace
from itertools import accumulate, chain
from operator import itemgetter
from typing import Any

from rowsft.errors import UserError, shortened
from rowsft.tasks.reading.cells import MayBeEmpty, checked, checked_list, is_empty, place
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
    empty: str = "refuse",
) -> Table:
    """The table of the rows (place, cells of `columns`) that a format's reader gives, every cell checked.

    empty: "drop" leaves rows with an empty cell out and counts them (the others keep their ids), "keep" reads the cell
    as "". Raises UserError for a cell that is no text, an empty one otherwise, and a table without rows.
    """
    kept: list[list[Any]] = [[] for _ in columns]
    numbers = array("q")
    adders = [
        (name, checked_list if is_list(name) else checked, values.append)
        for name, values in zip(columns, kept, strict=True)
    ]
    kept_rows = array("q")
    must_say = [not isinstance(name, MayBeEmpty) for name in columns]
    for row, (number, cells) in enumerate(cells_by_row):
        if empty == "keep":
            cells = ["" if is_empty(cell) else cell for cell in cells]
        elif empty == "drop":
            if any(_has_nothing(cell) and needed for cell, needed in zip(cells, must_say, strict=True)):
                counts.empty_rows += 1
                continue
            kept_rows.append(row)
        for (name, check, add), cell in zip(adders, cells, strict=True):
            add(cell if cell == "" and empty == "keep" else check(cell, name, source, unit, number))
        numbers.append(number)
    if not numbers:
        without = f" with a value in each of {', '.join(map(shortened, columns))}" if counts.empty_rows else ""
        raise UserError(f"{source}: no rows{without}; expected at least one")
    rows = kept_rows if empty == "drop" else range(len(numbers))
    return Table(source, unit, prefix, dict(zip(columns, kept, strict=True)), numbers, rows, counts)


def _has_nothing(cell: Any) -> bool:
    """Whether a cell, or an element of a list, is empty."""
    return any(map(is_empty, cell)) if isinstance(cell, list) else is_empty(cell)


def joined(tables: Sequence[Table], source: str) -> Table:
    """One table of the rows of several files of one data set, in their order, counted through."""
    if len(tables) == 1:
        return tables[0]
    first = tables[0]
    for table in tables[1:]:
        check_same_classes(first, table)
    starts = [0, *accumulate(len(table) + table.counts.empty_rows for table in tables)]
    return replace(
        first,
        source=f"{source}, split {first.prefix}",
        columns={name: list(chain.from_iterable(t.columns[name] for t in tables)) for name in first.columns},
        numbers=array("q", chain.from_iterable(table.numbers for table in tables)),
        rows=array("q", (start + row for start, table in zip(starts, tables, strict=False) for row in table.rows)),
        counts=Counts(*map(sum, zip(*(astuple(table.counts) for table in tables), strict=True))),
        parts=tuple((start, table.source) for start, table in zip(starts, tables, strict=False)),
    )


def check_same_classes(first: Table, other: Table) -> None:
    """Raise UserError where a class number means one class in `first` and another in `other`."""
    for column in first.class_names.keys() & other.class_names.keys():
        names, others = first.class_names[column], other.class_names[column]
        if names != others:
            raise UserError(
                f"{other.source}: the numbers of column {shortened(column)} stand for {shortened(', '.join(others))}, "
                f"in {first.source} for {shortened(', '.join(names))}; cast both to one ClassLabel, or write the "
                "labels as text"
            )
