"""Lines of running text as pieces, which are examples: cut at line ends, the same whatever the tokenizer."""

from array import array
from dataclasses import replace

from rowsft.errors import UserError
from rowsft.tasks.reading import Table

# Characters after which a piece ends with its line: a few hundred tokens.
LENGTH = 2048


def pieces(table: Table) -> Table:
    """The table of the pieces of a table of lines, in one column. A piece begins with a line that is not blank.

    A line is a row without the line ends at its end, one of blanks alone an empty line; a line break closes it. Rows
    are numbered by pieces, from 0; places are those of their first lines.
    """
    ((name, lines),) = table.columns.items()
    texts: list[str] = []
    numbers, size = array("q"), LENGTH
    for index, line in enumerate(lines):
        line = line.rstrip("\r\n")
        blank = not line.strip()
        if size >= LENGTH and (not blank or not texts):
            texts.append("")
            numbers.append(index)
            size = 0
        texts[-1] += "\n" if blank else f"{line}\n"
        size += len(line) + 1
    if not any(map(str.strip, texts)):
        raise UserError(f"{table.source}: no text; every line is blank")
    return replace(table, columns={name: texts}, numbers=_numbers(table, numbers), rows=range(len(texts)), parts=())


def _numbers(table: Table, first_rows: array) -> array:
    return array("q", [table.numbers[row] for row in first_rows])
