"""A section in the terminal: the main table cut to what fits, states, and the contract's open points."""

from collections.abc import Callable
from functools import partial

from rich.console import Console
from rich.text import Text

from rowsft.output import escape
from rowsft.report.columns import Sheet
from rowsft.report.fairness import MET, STATED, Condition
from rowsft.report.grid import grid, line
from rowsft.report.harness_tables import harness_main
from rowsft.report.lines import Line
from rowsft.report.notes import demonstration, notes
from rowsft.report.other_metrics import other_metrics
from rowsft.report.section import Section
from rowsft.report.tables import blocks, by_budget, heading, terminal_main

#: More rows than these say nothing on a terminal: the best are shown, and where the others are.
_MOST_ROWS = 40


def show(section: Section, console: Console) -> None:
    """Print one section."""
    table = section.table
    console.print(Text(f"\n{escape.terminal(heading(table))}", style="bold"))
    about = demonstration(table)
    if about is not None:
        console.print(line("A demonstration, not a result. " + "; ".join(about["notes"]) + ".", "yellow"))
        if about["real_command"]:
            console.print(line(f"For the real thing: {about['real_command']}", "yellow"))
    if section.lines:
        shown = _best(section)
        _print_main(console, terminal_main(section, shown))
        if len(shown) < len(section.lines):
            text = (
                f"the best {len(shown)} of {len(section.lines)} rows by {table.metric}; all are in the page and files"
            )
            console.print(line(text, "dim"))
        _print_pieces(console, partial(other_metrics, shown, table.split))
        _print_pieces(console, partial(harness_main, section, shown))
        if section.budgets:
            sheet = by_budget(section, intervals=False)
            console.print(line(sheet.title, "bold"))
            console.print(grid(sheet))
    else:
        console.print("No run has finished yet.")
    if section.unfinished:
        sheet = blocks(section)[0]
        console.print(Text("runs without a result", style="bold"))
        console.print(grid(Sheet(sheet.title, sheet.columns, sheet.items[:_MOST_ROWS])))
        if len(section.unfinished) > _MOST_ROWS:
            console.print(Text(f"and {len(section.unfinished) - _MOST_ROWS} more", style="dim"))
    for note in notes(section):
        console.print(line(note, "dim"))
    console.print(_contract(section.conditions, section.remarks))


def _best(section: Section) -> list[Line]:
    """Return the lines with the best values, in the table's order, where there are more than fit."""
    sign = -1 if section.table.higher_is_better else 1
    ranked = sorted(section.lines, key=lambda one: (one.value is None, sign * (one.value or 0)))
    best = {id(one) for one in ranked[:_MOST_ROWS]}
    return [one for one in section.lines if id(one) in best]


def _print_main(console: Console, sheet: Sheet[Line]) -> None:
    """Print it in one piece where the terminal is wide enough, else what the methods give above what they cost."""
    if _fits(console, sheet):
        console.print(grid(sheet))
        return
    console.print(grid(sheet.of("setting", "result")))
    console.print(grid(sheet.of("cost")))


def _print_pieces(console: Console, sheet_of: Callable[..., Sheet[Line]]) -> None:
    """Print a table of many columns: with its intervals where these fit, else in pieces that fit."""
    sheet = sheet_of()
    if not sheet.items:
        return
    console.print(line(sheet.title, "bold"))
    if not _fits(console, sheet):
        sheet = sheet_of(intervals=False)
    first, *rest = sheet.columns
    while rest:
        most = next(
            (n for n in range(len(rest), 1, -1) if _fits(console, Sheet("", [first, *rest[:n]], sheet.items))), 1
        )
        console.print(grid(Sheet("", [first, *rest[:most]], sheet.items)))
        rest = rest[most:]


def _fits(console: Console, sheet: Sheet) -> bool:
    return console.measure(grid(sheet), options=console.options.update(max_width=1000)).maximum <= console.width


def _contract(conditions: list[Condition], remarks: list[str]) -> Text:
    met = [condition.text for condition in conditions if condition.status == MET]
    stated = sum(condition.status == STATED for condition in conditions)
    also = f", {stated} stated by the experiment" if stated else ""
    text = Text(f"Fairness contract: {len(met)} of {len(conditions)} conditions met{also}.")
    for condition in conditions:
        if condition.status != MET:
            text.append(f"\n  {condition.status}: {condition.text}", style="yellow")
            text.append(f" ({escape.terminal(condition.detail)})" if condition.detail else "")
    for remark in remarks:
        text.append(f"\n  note: {escape.terminal(remark)}")
    if met:
        text.append("\n  met: " + "; ".join(met), style="dim")
    return text
