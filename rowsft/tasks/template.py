"""Texts with column names in braces: `Question: {question}\\nAnswer:`."""

import string
from typing import Any

from rowsft.errors import UserError, shortened
from rowsft.tasks.reading import Table


class Template:
    """The template that task.`key` holds. `columns`: the names in it, each once, as `text` has them.

    A backslash followed by n counts as a line break, because a command line cannot hold a real one. A name is taken
    whole: it may have dots, blanks or digits. Doubled braces are braces. `constant`: a text without names will do.
    """

    def __init__(self, key: str, text: Any, constant: bool = False):
        where = f"task.{key}={shortened(repr(text) if isinstance(text, str) else text)}"
        if not isinstance(text, str):
            raise UserError(f"{where}: expected text with column names in braces, like {{question}}")
        # (text before, column or None)
        self.parts: list[tuple[str, str | None]] = []
        self.text = text
        try:
            for before, name, form, conversion in string.Formatter().parse(text.replace("\\n", "\n")):
                if form or conversion:
                    raise ValueError(f"{{{name}}} has a format; a column's text is taken as it is")
                self.parts.append((before, name))
        except ValueError as error:
            raise UserError(f"{where}: {error}; expected column names in braces, like {{question}}") from error
        names = [name for _, name in self.parts if name is not None]
        if not (names or (constant and text)) or not all(name.strip() for name in names):
            raise UserError(f"{where}: expected column names in braces, like {{question}}")
        self.columns = list(dict.fromkeys(names))

    def filled(self, table: Table) -> list[str]:
        """The template with the cells of each row of `table`."""
        if not self.columns:
            return ["".join(piece for piece, _ in self.parts)] * len(table)
        pieces = [piece.replace("{", "{{").replace("}", "}}") for piece, _ in self.parts]
        places = {name: i for i, name in enumerate(self.columns)}
        form = "".join(
            piece if name is None else f"{piece}{{{places[name]}}}"
            for piece, (_, name) in zip(pieces, self.parts, strict=True)
        )
        return [form.format(*cells) for cells in zip(*(table.columns[name] for name in self.columns), strict=True)]
