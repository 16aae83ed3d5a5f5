"""One table with everything computed from it, so that Markdown, HTML, CSV and the terminal show the same numbers."""

from collections.abc import Callable
from dataclasses import dataclass

from rowsft.report import lines as numbers
from rowsft.report.fairness import Condition, contract, remarks
from rowsft.report.grids import Grids
from rowsft.report.overlap import overlaps
from rowsft.report.rows import Table


@dataclass(frozen=True)
class Section:
    """`lines` are the shown rows as numbers (see lines.py), `unfinished` the runs without a result,
    `overlaps` what the selections of importance metrics have in common (see overlap.py)."""

    table: Table
    lines: list[dict]
    unfinished: list[dict]
    grid: list[dict]
    overlaps: list[dict]
    conditions: list[Condition]
    remarks: list[str]


def section(table: Table, grids: Grids, step: Callable[[], None] = lambda: None) -> Section:
    """Compute a table's section. `grids` are the whole store's learning rates; `step` is called after each row."""
    return Section(
        table,
        numbers.lines(table, step),
        numbers.unfinished(table),
        numbers.grid_lines(table),
        overlaps(table),
        contract(table, grids),
        remarks(table),
    )
