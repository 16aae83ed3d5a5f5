"""One table with everything computed from it, so that Markdown, HTML, CSV and the terminal show the same numbers."""

from dataclasses import dataclass

from rowsft.report import lines as numbers
from rowsft.report.fairness import Condition, contract, remarks
from rowsft.report.overlap import overlaps
from rowsft.report.rows import Table
from rowsft.store import Record


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


def section(table: Table, store_records: list[Record]) -> Section:
    """Compute a table's section. `store_records` are all of the store's."""
    return Section(
        table,
        numbers.lines(table),
        numbers.unfinished(table),
        numbers.grid_lines(table),
        overlaps(table),
        contract(table, store_records),
        remarks(table),
    )
