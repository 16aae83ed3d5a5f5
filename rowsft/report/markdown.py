"""A section as Markdown."""

from rowsft.output import escape
from rowsft.report.columns import Sheet
from rowsft.report.notes import demonstration, notes
from rowsft.report.rows import Table
from rowsft.report.section import Section
from rowsft.report.tables import blocks, heading, main


def markdown(section: Section) -> str:
    """Return the whole section of a table: main table, notes, the other blocks, the fairness contract."""
    contract = [
        f"- **{c.status}**: {c.text}" + (f" ({escape.markdown(c.detail)})" if c.detail else "")
        for c in section.conditions
    ]
    contract += [f"- note: {escape.markdown(remark)}" for remark in section.remarks]
    parts = [
        f"## {escape.markdown(heading(section.table))}",
        _demonstration(section.table),
        as_table(main(section)) if section.lines else "No run has finished yet.",
        "\n".join(f"- {escape.markdown(note)}" for note in notes(section)),
        *(f"**{escape.markdown(sheet.title)}**\n\n{as_table(sheet)}" for sheet in blocks(section)),
        "**Fairness contract**\n\n" + "\n".join(contract),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _demonstration(table: Table) -> str:
    about = demonstration(table)
    if about is None:
        return ""
    text = "> **This is a demonstration, not a result.** " + escape.markdown("; ".join(about["notes"])) + "."
    real = about["real_command"]
    return text + (f"\n>\n> For the real thing: {escape.code(real)}" if real else "")


def as_table(sheet: Sheet) -> str:
    """Return a sheet as a table, without its title."""
    headings = [escape.markdown(column.heading) for column in sheet.columns]
    cells = [headings, ["---"] * len(headings), *([escape.markdown(cell) for cell in row] for row in sheet.rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)
