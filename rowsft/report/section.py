"""One table with everything computed from it, so that Markdown, HTML, CSV and the terminal show the same numbers."""

from collections.abc import Callable
from dataclasses import dataclass

from rowsft.report import lines as measured
from rowsft.report.budgets import Budgets, budgets
from rowsft.report.fairness import Condition, contract, remarks
from rowsft.report.grids import Grids
from rowsft.report.harness import HarnessColumn, harness_columns
from rowsft.report.harness_setups import Names
from rowsft.report.lines import Line, Rate, Unfinished
from rowsft.report.overlap import Overlap, overlaps
from rowsft.report.rows import Table
from rowsft.report.tuned import Tuned, WithoutRow


@dataclass(frozen=True)
class Section:
    """A table's rows as numbers, its runs without a result, its learning-rate grid, how a tuning stage chose the rates
    (by id(row)), the settings that it left without a row, its lines over budgets, what the selections of importance
    metrics have in common, its columns of lm-evaluation-harness, the fairness contract, and what the experiment adds to
    it."""

    table: Table
    lines: list[Line]
    unfinished: list[Unfinished]
    rates: list[Rate]
    tuned: dict[int, Tuned]
    without_row: list[WithoutRow]
    budgets: Budgets | None
    overlaps: list[Overlap]
    harness: list[HarnessColumn]
    conditions: list[Condition]
    remarks: list[str]


def section(table: Table, grids: Grids, names: Names, step: Callable[[], object] = lambda: None) -> Section:
    """Compute a table's section. `grids` are the whole store's learning rates, `names` those of lm-evaluation-harness's
    tasks in the whole report; `step` is called after each row."""
    tuned = grids.tuning.of(table)
    lines, harness = measured.lines(table, step), harness_columns(table, names)
    for column in harness:
        for line, cell in zip(lines, column.cells, strict=True):
            if cell is not None:
                line.harness[column.key] = cell
    return Section(
        table,
        lines,
        measured.unfinished(table),
        measured.rates(table),
        tuned,
        grids.tuning.without_row(table),
        budgets(table),
        overlaps(table),
        harness,
        contract(table, grids, tuned),
        remarks(table),
    )
