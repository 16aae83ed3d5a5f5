"""txt: a line is a row of the one column `text`."""

from collections.abc import Iterable, Iterator, Sequence

from rowsft.errors import UserError
from rowsft.tasks.reading.columns import positions
from rowsft.tasks.reading.counts import Counts

COLUMN = "text"


def rows(
    lines: Iterable[str], columns: Sequence[str], where: str, counts: Counts, blanks: bool
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(line from 1, its text without the line end). Blank lines are rows with `blanks`, else skipped and counted."""
    positions(columns, [COLUMN], where, "a txt file has no others")
    number = 0
    for number, line in enumerate(lines, 1):
        if blanks or line.strip():
            yield number, (line.rstrip("\r\n"),)
        else:
            counts.blank_lines += 1
    if not number:
        raise UserError(f"{where}: the file is empty; expected at least one row")
