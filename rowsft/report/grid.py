"""A sheet as a table for the terminal."""

from rich.cells import cell_len
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


def unfolded(sheet: Sheet, width: int, caption: str) -> Text | None:
    """Return what `grid` shows as one text; None where words must be folded to fit.

    A listing has thousands of rows, and rich lays out every cell of a table as a paragraph: a third of the time goes.
    """
    rows = [[escape.terminal(cell) for cell in row] for row in sheet.rows]
    headings = [column.heading for column in sheet.columns]
    widths = [max(map(cell_len, column)) for column in zip(headings, *rows, strict=True)]
    if sum(widths) + 2 * (len(widths) - 1) > width:
        return None

    def padded(cell: str, number: int) -> str:
        blank = " " * (widths[number] - cell_len(cell))
        return blank + cell if sheet.columns[number].kind == "number" else cell + blank

    text = Text("  ".join(padded(cell, number) for number, cell in enumerate(headings)), style="", end="\n")
    text.stylize("bold")
    for row in rows:
        for number, cell in enumerate(row):
            style = STATE_COLOURS.get(cell) if sheet.columns[number].key == "state" else None
            text.append("  " if number else "\n").append(padded(cell, number), style)
    return text.append(f"\n{escape.terminal(caption)}", "dim italic")
