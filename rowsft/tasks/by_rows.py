"""Examples out of tables, and which row an error names where several are bad."""

from collections.abc import Callable, Mapping

from rowsft.errors import UserError
from rowsft.tasks.reading import Table

_Make = Callable[[str, Table], list[dict]]


def examples_of(tables: Mapping[str, Table], make: _Make) -> dict[str, list[dict]]:
    """The examples that `make` gives for (split, table); it treats every row by itself.

    Raises UserError for a row that `make` refuses, of several in one file the first: splits that are cut off a file
    hold its rows in another order.
    """
    try:
        return {name: make(name, table) for name, table in tables.items()}
    except UserError:
        for source in dict.fromkeys(table.source for table in tables.values()):
            of_file = {name: table for name, table in tables.items() if table.source == source}
            refused = [found for name, table in of_file.items() if (found := _first_refused(name, table, make))]
            if refused:
                raise min(refused, key=lambda found: found[0])[1] from None
        raise


def _first_refused(name: str, table: Table, make: _Make) -> tuple[int, UserError] | None:
    """The first row of the file that `make` refuses, and the error; None where it takes all of them."""
    order = sorted(range(len(table)), key=table.rows.__getitem__)
    first, end = 0, len(order)
    while end - first > 1:
        middle = (first + end) // 2
        if _refused(name, table.take(order[first:middle]), make):
            end = middle
        else:
            first = middle
    error = _refused(name, table.take(order[first:end]), make)
    return (table.rows[order[first]], error) if error else None


def _refused(name: str, table: Table, make: _Make) -> UserError | None:
    try:
        make(name, table)
    except UserError as error:
        return error
    return None
