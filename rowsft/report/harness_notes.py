"""What a reader needs to read a table's columns of lm-evaluation-harness right."""

from rowsft.report.grids import few
from rowsft.report.harness import HarnessColumn
from rowsft.report.harness_setups import differing
from rowsft.report.section import Section


def harness_notes(section: Section) -> list[str]:
    """Return how often tasks were evaluated otherwise, and what intervals, differences and means lack."""
    columns = section.harness
    if not columns:
        return []
    of_task: dict[str, list[HarnessColumn]] = {}
    for column in columns:
        of_task.setdefault(column.setup.task, []).append(column)
    texts = []
    for task, several in of_task.items():
        apart = differing(column.setup for column in several)
        if apart:
            texts.append(
                f"{task} was evaluated in {len(several)} ways, which differ in {', '.join(apart)}: each is a column of "
                "its own, and numbers of different ways are neither averaged nor compared."
            )
    older = [column.title for column in columns if any(cell is not None and cell.older for cell in column.cells)]
    groups = [
        column.title
        for column in columns
        if column.title not in older and any(cell is not None and not cell.sampled for cell in column.cells)
    ]
    if older:
        texts.append(
            "Evaluations without results per example, so without intervals over examples and differences (evaluate "
            f"again to have them): {few(older, ', ')}."
        )
    if groups:
        texts.append(
            "A group has no examples of its own, so neither intervals over examples nor differences: "
            f"{few(groups, ', ')}."
        )
    fewer = [
        f"{column.title} of {line.title} ({cell.estimate.seeds} of {line.seeds})"
        for column in columns
        for line, cell in zip(section.lines, column.cells, strict=True)
        if cell is not None and cell.estimate.seeds < line.seeds
    ]
    if fewer:
        texts.append(f"Evaluated for fewer seeds than the row has: {few(fewer, ', ')}.")
    return texts
