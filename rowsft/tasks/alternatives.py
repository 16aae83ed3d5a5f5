"""One template or several, of which each row takes the first that it can fill."""

from collections.abc import Mapping, Sequence
from typing import Any

from rowsft.errors import UserError, shortened
from rowsft.tasks.reading import MayBeEmpty, Table
from rowsft.tasks.template import Template


class Alternatives:
    """The templates that task.`key` holds: a text, or a list of them (see Template).

    A row takes the first one whose columns all hold something there. `columns`: the names in any of them, those that
    the last one does without marked as columns that may be empty.
    """

    def __init__(self, key: str, given: Any):
        if isinstance(given, Mapping) or (isinstance(given, Sequence) and not given):
            raise UserError(f"task.{key}={shortened(given)}: expected a template, or a list of templates")
        several = isinstance(given, Sequence) and not isinstance(given, str)
        self.templates = [Template(f"{key}[{i}]", one) for i, one in enumerate(given)] if several else []
        self.templates = self.templates or [Template(key, given)]
        names = dict.fromkeys(name for template in self.templates for name in template.columns)
        needed = self.templates[-1].columns
        self.columns = [name if name in needed else MayBeEmpty(name) for name in names]

    def filled(self, table: Table) -> list[str]:
        """Of each row of `table`, the first template that it can fill, with its cells."""
        texts = self.templates[-1].filled(table)
        for template in reversed(self.templates[:-1]):
            rows = zip(*(table.columns[name] for name in template.columns), strict=True)
            fuller = template.filled(table)
            texts = [full if all(row) else text for full, text, row in zip(fuller, texts, rows, strict=True)]
        return texts
