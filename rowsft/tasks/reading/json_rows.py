"""JSON lines and JSON arrays of objects: numbers, true and false as they are written, nothing nested in a cell."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

from rowsft.errors import UserError, shortened
from rowsft.tasks.reading import fields
from rowsft.tasks.reading.cells import WORDS, NotText
from rowsft.tasks.reading.columns import MissingColumn, missing
from rowsft.tasks.reading.counts import Counts

_BLANKS = re.compile(r"[ \t\r\n]*")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Twice(f"the key {shortened(twice)} stands twice in an object")
    return members


class _Twice(ValueError):
    """A key that stands twice: JSON readers take the last one without a word."""


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=str, parse_float=str, parse_constant=lambda word: NotText(word)
)


def line_rows(
    lines: Iterable[str], columns: Sequence[str], where: str, counts: Counts
) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """(line from 1, cells of `columns`) of a file with one object a line; blank lines are skipped and counted."""
    return _cells(_lines(lines, where, counts), columns, where)


def _lines(lines: Iterable[str], where: str, counts: Counts) -> Iterator[tuple[int, dict[str, Any]]]:
    empty = True
    for number, line in enumerate(lines, 1):
        if not line.strip():
            counts.blank_lines += 1
            continue
        place = f"{where}, line {number}"
        yield number, _checked(_decoded(place, _DECODER.decode, line.strip(" \t\r\n")), place)
        empty = False
    if empty:
        raise UserError(f"{where}: the file is empty; expected at least one row")


def array_rows(text: str, columns: Sequence[str], where: str) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """(element from 1, cells of `columns`) of a file that is one array of objects."""
    return _cells(_elements(text, where), columns, where)


def _elements(text: str, where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    at, number = _skip(text, 0) + 1, 0
    if text[_skip(text, at) : _skip(text, at) + 1] == "]":
        _end(text, _skip(text, at) + 1, where)
        return
    while True:
        number += 1
        place = f"{where}, element {number}"
        row, at = _decoded(place, _DECODER.raw_decode, text, _skip(text, at))
        yield number, _checked(row, place)
        at = _skip(text, at)
        if text[at : at + 1] == "]":
            break
        if text[at : at + 1] != ",":
            next_text = shortened(text[at : at + 20]) or "the end of the file"
            raise UserError(f"{place}: cannot be read as JSON (expected , or ] after it, found {next_text})")
        at += 1
    _end(text, at + 1, where)


def _skip(text: str, at: int) -> int:
    return cast(re.Match, _BLANKS.match(text, at)).end()


def _end(text: str, at: int, where: str) -> None:
    at = _skip(text, at)
    if at < len(text):
        raise UserError(f"{where}: cannot be read as JSON (after the array stands {shortened(text[at : at + 40])})")


def _decoded(place: str, decode, *arguments):
    try:
        return decode(*arguments)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{place}: cannot be read as JSON ({error.msg} at line {error.lineno}, column {error.colno})"
            if error.lineno > 1
            else f"{place}: cannot be read as JSON ({error.msg} at column {error.colno})"
        ) from error
    except _Twice as error:
        raise UserError(f"{place}: {error}; rename or drop one") from error
    except RecursionError as error:
        raise UserError(f"{place}: nested too deeply; expected an object of texts") from error


def _missing(name: str, row: dict[str, Any], where: str) -> str:
    """The message, with the fields of the column that the name begins with, where it is there."""
    outer = fields.top(name, list(row))
    around = row.get(outer)
    around = around[0] if isinstance(around, list) and around else around
    if outer in row and isinstance(around, dict):
        return missing(fields.bare(name), [f"{outer}.{key}" for key in around], where)
    return missing(fields.bare(name), list(row), where)


def _checked(row: Any, place: str) -> dict[str, Any]:
    if type(row) is not dict:
        kind = "a list" if isinstance(row, list) else "a single value"
        hint = "; an array of objects belongs in a .json file" if isinstance(row, list) and "line" in place else ""
        raise UserError(f'{place}: expected an object such as {{"column": "text"}}, got {kind}{hint}')
    return row


def _cells(
    rows: Iterable[tuple[int, dict[str, Any]]], columns: Sequence[str], where: str
) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """The cells of `columns` of every object; None where it lacks one. Raises MissingColumn for one that all lack."""
    inside = fields.reach_in(columns)
    for number, row in _with_every_column(rows, columns, where):
        cells = tuple(fields.cell(row, name) for name in columns) if inside else tuple(map(row.get, columns))
        if True in cells or False in cells:
            cells = tuple(WORDS[cell] if isinstance(cell, bool) else cell for cell in cells)
        yield number, cells


def _with_every_column(
    rows: Iterable[tuple[int, dict[str, Any]]], columns: Sequence[str], where: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The same rows. They are held back until each column was in one of them: a gap in the first is no wrong name."""
    unseen, held = list(columns), []
    for number, row in rows:
        if not unseen:
            yield number, row
            continue
        held.append((number, row))
        unseen = [name for name in unseen if not fields.has(row, name)]
        if not unseen:
            yield from held
            held = []
    if unseen and held:
        raise MissingColumn(_missing(unseen[0], held[0][1], where))
