"""Options and labels of multiple choice out of the user's columns, in any of the usual ways of writing them."""

import string
from collections.abc import Sequence
from typing import Any

from rowsft.errors import UserError, shortened
from rowsft.tasks.reading import LIST, Table
from rowsft.tasks.template import Template

#: How labels may be written, where no list or column says it: numbers of options, letters, or the options themselves.
WAYS = ("from_0", "from_1", "letters", "texts")


class Options:
    """task.options: a list of templates, one an option, or the name of a column that holds a list of texts."""

    def __init__(self, options: Any):
        self.templates: list[Template] | None = None
        self.column = ""
        if isinstance(options, str) and options.strip():
            self.column = options.removesuffix(LIST) + LIST
        elif isinstance(options, Sequence) and not isinstance(options, str) and len(options) > 1:
            self.templates = [Template(f"options[{i}]", text, constant=True) for i, text in enumerate(options)]
        else:
            raise UserError(
                f'task.options={shortened(options)}: expected two templates or more, such as ["{{a}}", "{{b}}"], or '
                "the name of a column that holds lists"
            )

    @property
    def count(self) -> int | None:
        """How many there are; None where each row has its own number."""
        return None if self.templates is None else len(self.templates)

    @property
    def columns(self) -> list[str]:
        """The columns to be read."""
        if self.templates is None:
            return [self.column]
        return list(dict.fromkeys(name for template in self.templates for name in template.columns))

    def of(self, table: Table) -> list[list[str]]:
        """The options of every row. Raises UserError for a row with fewer than two."""
        if self.templates is not None:
            return [list(row) for row in zip(*(template.filled(table) for template in self.templates), strict=True)]
        lists = table.columns[self.column]
        for i, options in enumerate(lists):
            if len(options) < 2:
                raise UserError(
                    f"{table.place(i)}: column {self.column.removesuffix(LIST)} holds {len(options)} options; expected "
                    "two or more"
                )
        return lists


class Labels:
    """task.label, the column of right answers, and task.labels, how they are written.

    labels: one of WAYS; a list of what stands for each option; or the name of a column that holds such a list a row.
    """

    def __init__(self, label: Any, labels: Any, options: Options):
        if not isinstance(label, str) or not label.strip():
            raise UserError(f"task.label={shortened(label)}: expected the name of the column of right answers")
        self.label = label
        self.listed: list[str] | None = None
        self.way, self.column = "", ""
        if isinstance(labels, str) and labels in WAYS:
            self.way = labels
        elif isinstance(labels, str) and labels.strip():
            self.column = labels.removesuffix(LIST) + LIST
        elif isinstance(labels, Sequence) and not isinstance(labels, str):
            self.listed = [label_text(label) for label in labels]
            self._check(options)
        else:
            raise UserError(
                f"task.labels={shortened(labels)}: expected {', '.join(WAYS)}, a list such as [A, B, C], or the name "
                "of a column that holds such lists"
            )

    def _check(self, options: Options) -> None:
        listed, count = self.listed or [], len(options.templates or [])
        shown = f"task.labels=[{shortened(', '.join(listed))}]"
        if len(set(listed)) < len(listed):
            raise UserError(f"{shown}: a label stands twice; expected a different one for each option")
        if options.templates is not None and len(listed) != count:
            raise UserError(f"{shown}: {len(listed)} labels for {count} options (task.options); expected one for each")

    @property
    def columns(self) -> list[str]:
        """The columns to be read."""
        return [self.label, *([self.column] if self.column else [])]

    def of(self, table: Table, options: Sequence[Sequence[str]]) -> list[int]:
        """The number of every row's right option, from 0. Raises UserError for a label that stands for none."""
        lists = table.columns[self.column] if self.column else None
        numbers = []
        for i, (cell, own) in enumerate(zip(table.columns[self.label], options, strict=True)):
            names = self._names(own, [] if lists is None else lists[i])
            if lists is not None and len(names) != len(own):
                raise UserError(
                    f"{table.place(i)}: {len(names)} labels in column {self.column.removesuffix(LIST)} for {len(own)} "
                    "options; expected one for each"
                )
            places = [place for place, name in enumerate(names) if name == cell.strip()]
            if len(places) != 1 or places[0] >= len(own):
                raise UserError(self._fault(table.place(i), cell, names[: len(own)], twice=len(places) > 1))
            numbers.append(places[0])
        return numbers

    def _names(self, options: Sequence[str], row: Sequence[str]) -> list[str]:
        """What stands for each option of a row."""
        if self.column:
            return [label.strip() for label in row]
        if self.listed is not None:
            return self.listed
        if self.way == "texts":
            return [option.strip() for option in options]
        if self.way == "letters":
            return list(string.ascii_uppercase[: len(options)])
        first = int(self.way == "from_1")
        return [str(place + first) for place in range(len(options))]

    def _fault(self, place: str, cell: str, names: Sequence[str], twice: bool) -> str:
        value = f"column {shortened(self.label)} is {shortened(cell)}"
        if twice:
            return f"{place}: {value}, which stands for several options; expected one right option"
        way = f" (task.labels={self.way})" if self.way else " (task.labels)"
        expected = f"expected {shortened(', '.join(names), 200)}{way}"
        hint = ""
        if cell.strip() == "-1":
            hint = "; where the labels of a split are hidden, name another split"
        return f"{place}: {value}; {expected}{hint}"


def label_text(label: Any) -> str:
    """A label of the list as it is written in the data: YAML reads true and 1 as what they are."""
    if isinstance(label, bool):
        return str(label).lower()
    if not isinstance(label, str | int) or not str(label).strip():
        raise UserError(
            f"task.labels: {shortened(label)} is no label; expected text, in quote marks where it is a number"
        )
    return str(label).strip()
