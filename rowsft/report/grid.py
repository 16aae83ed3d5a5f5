"""A sheet as a table for the terminal."""

from rich.table import Table as Grid
from rich.text import Text

from rowsft.output import escape
from rowsft.report.columns import Sheet

STATE_COLOURS = {
    "done": "green",
    "running": "cyan",
    "pending": "dim",
    "failed": "red",
    "oom": "red",
    "interrupted": "yellow",
}


def grid(sheet: Sheet, **options) -> Grid:
    """Return a sheet for rich, without its title; `options` are those of rich's table."""
    table = Grid(box=None, header_style="bold", pad_edge=False, **options)
    for column in sheet.columns:
        table.add_column(
            line(column.heading),
            justify="right" if column.kind == "number" else "left",
            no_wrap=column.kind != "words",
            overflow="fold",
        )
    for row in sheet.rows:
        table.add_row(
            *(
                line(cell, STATE_COLOURS.get(cell, "") if column.key == "state" else "")
                for column, cell in zip(sheet.columns, row, strict=True)
            )
        )
    return table


def line(text: str, style: str = "") -> Text:
    """Return a text for rich, as it is: names may hold square brackets, which rich would take for markup."""
    return Text(escape.terminal(text), style=style)
