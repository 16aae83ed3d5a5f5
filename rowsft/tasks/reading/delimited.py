"""csv and tsv: Python's csv module in strict mode, no type guessed, every row as long as the header."""

import csv
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter

from rowsft.errors import UserError, shortened
from rowsft.tasks.reading.columns import positions
from rowsft.tasks.reading.counts import Counts

#: What task.data.separator may name, and the character.
SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}
_DIRECTIVE = re.compile("sep=.")
_BLANKS = frozenset(" \t")
_NAMES = {character: name for name, character in SEPARATORS.items()}


def rows(
    lines: Iterable[str], columns: Sequence[str], where: str, counts: Counts, separator: str, quotes: bool
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(line from 1 where the row begins, its cells of `columns`) for every row under the header.

    quotes: a cell in quote marks may hold separators and line ends, and a doubled mark in it is one (RFC 4180); without
    them quote marks are text. Lines without any character but blanks are skipped and counted. Raises UserError naming
    the line of a row with too few or too many cells, or with a quote mark that is never closed or closed too early.
    """
    last = [""]
    reader = csv.reader(
        _remembered(lines, last),
        delimiter=separator,
        quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE,
        strict=True,
    )
    header: list[str] | None = None
    pick: Callable[[list[str]], tuple[str, ...]]
    with _any_length():
        while True:
            start = reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                raise UserError(_broken(where, start, reader.line_num, error)) from error
            if not row or (len(row) == 1 and not row[0].strip()):
                counts.blank_lines += 1
            elif header is None and _DIRECTIVE.fullmatch(separator.join(row)):
                # A spreadsheet says here which separator it wrote; what is set decides.
                continue
            elif header is None:
                if quotes:
                    _check_quotes(row, last[0], where, start, separator)
                header = [name.strip() for name in row]
                pick = _picker(positions(columns, header, where, _other_separator(columns, row, separator)))
            elif len(row) != len(header):
                raise UserError(_length(where, start, row, header, separator, quotes))
            else:
                cells = pick(row)
                if quotes:
                    _check_quotes(cells, last[0], where, start, separator)
                yield start, cells
    if header is None:
        raise UserError(f"{where}: the file is empty; expected at least one row")


@contextmanager
def _any_length() -> Iterator[None]:
    """The csv module takes cells of any length; its limit of 131,072 characters is back afterwards."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _remembered(lines: Iterable[str], last: list[str]) -> Iterator[str]:
    for last[0] in lines:
        yield last[0]


def _check_quotes(cells: Iterable[str], line: str, where: str, number: int, separator: str) -> None:
    """Raise UserError for `, "text"`: after a blank a mark quotes nothing, and would become part of the text."""
    for cell in cells:
        if cell[:1] not in _BLANKS or not cell.strip()[:1] == '"' == cell.rstrip()[-1]:
            continue
        # A cell that is quoted as a whole has its inner marks doubled in the line.
        if f"{separator}{cell}" in line or line.startswith(cell):
            raise UserError(
                f"{where}, line {number}: a blank stands before the quote mark of {shortened(cell)}, which then "
                f"quotes nothing; put the mark right after the {_NAMES[separator]}"
            )


def _picker(places: list[int]):
    if len(places) == 1:
        return lambda row: (row[places[0]],)
    return itemgetter(*places)


def _other_separator(columns: Sequence[str], header: list[str], separator: str) -> str:
    """Advice for a header that another separator would take apart."""
    if len(header) > 1:
        return ""
    for name, character in SEPARATORS.items():
        cells = [cell.strip().strip('"') for cell in header[0].split(character)]
        if character != separator and len(cells) > 1:
            return f"the header is separated by {name}s: set task.data.separator={name}"
    return ""


def _length(where: str, line: int, row: list[str], header: list[str], separator: str, quotes: bool) -> str:
    name = _NAMES[separator]
    shown = f"expected {len(header)} as in the header ({shortened(', '.join(header))}), got {len(row)}"
    if len(row) < len(header):
        advice = f"a cell or a {name} is missing"
    elif quotes:
        advice = f"put quote marks around a cell that holds a {name}"
    else:
        advice = f"a cell must not hold a {name}"
    return f"{where}, line {line}: {shown} cells; {advice}"


def _broken(where: str, start: int, end: int, error: csv.Error) -> str:
    if "end of data" in str(error):
        reason = "a quote mark opens a cell and is never closed"
    elif "expected after" in str(error):
        reason = "a quote mark inside a quoted cell"
    else:
        reason = str(error)
    place = f"line {start}" if end <= start else f"lines {start} to {end}"
    return (
        f'{where}, {place}: {reason}; double a quote mark that is text ("") and put marks around its cell, '
        "or use tsv, which knows no quoting"
    )
