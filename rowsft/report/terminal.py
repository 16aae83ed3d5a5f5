"""A section in the terminal: the main table cut to what fits, states, and the contract's open points."""

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from rowsft.output import escape
from rowsft.report.fairness import MET, STATED, Condition
from rowsft.report.notes import demonstration, notes
from rowsft.report.section import Section
from rowsft.report.tables import TERMINAL_COSTS, heading, state_columns, terminal_columns

_LEFT = ("method", "state", "phase", "reason")
#: More rows than these say nothing on a terminal: the best are shown, and where the others are.
_MOST_ROWS = 40


def show(section: Section, console: Console) -> None:
    """Print one section."""
    table = section.table
    console.print(Text(f"\n{escape.terminal(heading(table))}", style="bold"))
    said = demonstration(table)
    if said is not None:
        console.print(_line("A demonstration, not a result. " + "; ".join(said["notes"]) + ".", "yellow"))
        if said["real_command"]:
            console.print(_line(f"For the real thing: {said['real_command']}", "yellow"))
    if section.lines:
        shown = _best(section)
        _print_main(console, [terminal_columns(table, line) for line in shown])
        if len(shown) < len(section.lines):
            text = (
                f"the best {len(shown)} of {len(section.lines)} rows by {table.metric}; all are in the page and files"
            )
            console.print(_line(text, "dim"))
    else:
        console.print("No run has finished yet.")
    if section.unfinished:
        console.print(Text("runs without a result", style="bold"))
        console.print(grid([state_columns(entry) for entry in section.unfinished[:_MOST_ROWS]]))
        if len(section.unfinished) > _MOST_ROWS:
            console.print(Text(f"and {len(section.unfinished) - _MOST_ROWS} more", style="dim"))
    for note in notes(table, section.lines):
        console.print(_line(note, "dim"))
    console.print(_contract(section.conditions, section.remarks))


def _best(section: Section) -> list[dict]:
    """The lines with the best values, in the table's order, where there are more than fit."""
    sign = -1 if section.table.higher_is_better else 1
    ranked = sorted(
        range(len(section.lines)),
        key=lambda i: (section.lines[i]["value"] is None, sign * (section.lines[i]["value"] or 0)),
    )
    return [section.lines[index] for index in sorted(ranked[:_MOST_ROWS])]


def _print_main(console: Console, rows: list[dict[str, str]]) -> None:
    """In one piece where the terminal is wide enough, else what the methods give above what they cost."""
    whole = grid(rows)
    if console.measure(whole, options=console.options.update(max_width=1000)).maximum <= console.width:
        console.print(whole)
        return
    console.print(grid([{name: row[name] for name in row if name not in TERMINAL_COSTS} for row in rows]))
    console.print(grid([{name: row[name] for name in ("method", *TERMINAL_COSTS)} for row in rows]))


def grid(rows: list[dict[str, str]], words: tuple[str, ...] = _LEFT) -> Grid:
    """One line a row, one column a key. Columns named in `words` stand left and fold, the others right and do not."""
    table = Grid(box=None, header_style="bold", pad_edge=False)
    for name in rows[0]:
        text = name in words
        table.add_column(_line(name.strip()), justify="left" if text else "right", no_wrap=not text, overflow="fold")
    for row in rows:
        table.add_row(*(_line(cell) for cell in row.values()))
    return table


def _line(text: str, style: str = "") -> Text:
    # Text, not markup: names may hold square brackets.
    return Text(escape.terminal(text), style=style)


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
