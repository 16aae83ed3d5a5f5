"""A plan's description on a terminal."""

from rich import markup
from rich import table as rich
from rich.console import Console
from rich.text import Text

from rowsft.output import escape
from rowsft.plan.description import Description, Table


def show_plan(plan: Description, console: Console, advice: list[str]) -> None:
    """Print one plan: what was assumed, its tables, and what to change."""
    # A name may hold square brackets, which rich would take for its own.
    console.print(f"[bold]{markup.escape(escape.terminal(plan.title))}[/], {plan.setting}")
    for note in plan.notes:
        console.print(f"  assumed: {note}", style="dim", markup=False)
    for block in plan.blocks:
        console.print(_table(block) if isinstance(block, Table) else block, markup=False)
    for line in advice:
        console.print(f"  {line}", markup=False)


def show_side_by_side(plans: Description, console: Console) -> None:
    """Print plans as the lines of one table, and below what holds for all of them."""
    for table in plans.tables:
        console.print(_table(table))
    for note in (plans.setting, *plans.notes):
        console.print(f"  {note}", style="dim")


def _table(table: Table) -> rich.Table:
    shown = rich.Table()
    for index, name in enumerate(table.header):
        shown.add_column(name, justify="left" if index < table.words else "right")
    for row in table.rows:
        shown.add_row(*(Text(escape.terminal(cell)) for cell in row))
    if table.total:
        shown.add_section()
        shown.add_row(*map(Text, table.total), style="bold")
    return shown
