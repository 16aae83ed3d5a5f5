"""A comparison in the terminal: the two sides, what differs, the numbers, and the limits with what became of them."""

import json

from rich.console import Console

from rowsft.output.quantities import NONE
from rowsft.report.columns import Column, Sheet, words
from rowsft.report.compare import Comparison
from rowsft.report.compare.limits import WITHIN
from rowsft.report.compare.number import Number
from rowsft.report.compare.units import amounts, change, percent
from rowsft.report.grid import grid, line

_DIFFERING: list[Column[tuple[str, dict]]] = [
    Column("name", "name", lambda pair: pair[0], kind="words"),
    Column("a", "A", lambda pair: _value(pair[1], "a"), kind="words"),
    Column("b", "B", lambda pair: _value(pair[1], "b"), kind="words"),
]
_NUMBERS: list[Column[Number]] = [
    words("name", "name"),
    Column("a", "A", lambda number: amounts(number.name, (number.a, number.b))[0]),
    Column("b", "B", lambda number: amounts(number.name, (number.a, number.b))[1]),
    Column("difference", "B - A", lambda number: change(number.name, number.difference)),
    Column("change_percent", "change", lambda number: percent(number.change_percent)),
]


def show(comparison: Comparison, console: Console) -> None:
    """Print one comparison."""
    sides = (("A", comparison.a), ("B", comparison.b))
    for letter, side in sides:
        _line(console, f"{letter}  {side.name}: {side.title}")
    _print_differing(console, "settings", comparison.settings)
    _print_differing(console, "environment", comparison.environment)
    if comparison.environment:
        _line(console, "Seconds may have moved for the environment alone.", "dim")
    _print_numbers(console, comparison.numbers)
    for letter, side in sides:
        for note in side.notes:
            _line(console, f"{letter}: {note}", "yellow")
    _print_limits(console, comparison)


def _print_differing(console: Console, title: str, differing: dict[str, dict[str, object]]) -> None:
    if not differing:
        _line(console, f"\n{title}: no difference", "bold")
        return
    _line(console, f"\n{title} that differ{'s' * (not title.endswith('s'))}", "bold")
    console.print(grid(Sheet(title, _DIFFERING, list(differing.items()))))


def _value(sides: dict[str, object], side: str) -> str:
    value = sides.get(side, NONE)
    return value if isinstance(value, str) else json.dumps(value)


def _print_numbers(console: Console, numbers: list[Number]) -> None:
    # What neither side measured says nothing, though a limit may name it.
    shown = [number for number in numbers if number.a is not None or number.b is not None]
    _line(console, "\nnumbers", "bold")
    console.print(grid(Sheet("numbers", _NUMBERS, shown)))
    for number in shown:
        pair = number.paired
        if pair is not None and pair.low is not None:
            moved, interval = change(number.name, number.difference), f"[{pair.low:+.4f}, {pair.high:+.4f}]"
            _line(console, f"{number.name}: {moved} {interval}, paired on the same {pair.examples:,} examples (95 %)")


def _print_limits(console: Console, comparison: Comparison) -> None:
    if not comparison.verdicts:
        return
    _line(console, "\nlimits", "bold")
    for verdict in comparison.verdicts:
        style = "green" if verdict.outcome == WITHIN else "red"
        _line(console, f"{verdict.outcome:<7}  {verdict.limit}  {verdict.name}: {verdict.reason}", style)
    kept = sum(verdict.outcome == WITHIN for verdict in comparison.verdicts)
    _line(console, f"{kept} of {len(comparison.verdicts)} within limits")


def _line(console: Console, text: str, style: str = "") -> None:
    # One line stays one line, however narrow: a log is searched by line.
    if text.startswith("\n"):
        console.print()
    console.print(line(text.removeprefix("\n"), style), soft_wrap=True)
