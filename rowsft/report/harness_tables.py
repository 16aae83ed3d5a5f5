"""The tables of lm-evaluation-harness's tasks: what each row scored, and how far that is from its references."""

from typing import Literal

from rowsft.report.columns import Column, Sheet, words
from rowsft.report.harness import HarnessColumn
from rowsft.report.lines import Line
from rowsft.report.notes import of_the_same
from rowsft.report.predictions import Difference
from rowsft.report.section import Section
from rowsft.report.written import estimated, paired

TITLE = "Tasks of lm-evaluation-harness (lm-eval)"
_DIRECTIONS: dict[bool | None, Literal["higher", "lower", ""]] = {True: "higher", False: "lower", None: ""}
_REFERENCES = {"minus_lora": "minus LoRA", "minus_full": "minus full fine-tuning"}


def harness_main(section: Section, lines: list[Line], intervals: bool = True) -> Sheet[Line]:
    """Return one column a task that any row was evaluated on; without columns where there is none."""
    columns = [words("title", "method"), *(_scores(column, intervals) for column in section.harness)]
    return Sheet(TITLE, columns, lines if section.harness else [])


def harness_differences(section: Section) -> list[Sheet[Line]]:
    """Return one table a reference that any row was held against on the same examples."""
    sheets = []
    for name, title in _REFERENCES.items():
        compared = [
            column
            for column in section.harness
            if any(getattr(cell, name) is not None for cell in column.cells if cell is not None)
        ]
        if compared:
            same = of_the_same(section.table) if name == "minus_lora" else ""
            columns = [words("title", "method"), *(_differences(column, name) for column in compared)]
            ending = "on the same examples (paired bootstrap, 95 %)"
            sheets.append(Sheet(f"{TITLE}: {title}{same} {ending}", columns, section.lines))
    return sheets


def _scores(column: HarnessColumn, intervals: bool) -> Column[Line]:
    def cell(line: Line) -> str:
        found = line.harness.get(column.key)
        return estimated(found.estimate if found else None, intervals=intervals)

    return Column(column.key, column.title, cell, direction=_DIRECTIONS[column.higher_is_better])


def _differences(column: HarnessColumn, name: str) -> Column[Line]:
    def cell(line: Line) -> str:
        pair: Difference | None = getattr(line.harness.get(column.key), name, None)
        return paired(pair)

    return Column(f"{column.key}.{name}", column.title, cell)
