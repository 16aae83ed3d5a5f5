"""A table before anybody lays it out: columns that say what they hold, and the items that its rows are made of."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from rowsft.output.quantities import MIB, number

Item = TypeVar("Item")

#: Unit of a column -> what a measured number is multiplied by to be in it.
_SCALES = {"MiB": 1 / MIB, "ms": 1000, "kJ": 1 / 1000}
#: Units that stand behind the number; the others stand in the heading.
_IN_CELL = {"×": "×", "%": " %"}
_ARROWS = {"higher": " ↑", "lower": " ↓", "": ""}


@dataclass(frozen=True)
class Column(Generic[Item]):
    """One column of a table.

    key: the field of the item that it shows, which is its name in a CSV file. unit: of the number as shown. direction:
    which values are better. group: what the column tells of an item. kind: numbers stand to the right; words to the
    left and may be wrapped; a name to the left in one piece. format: a format of the number under `key`, or what makes
    the cell of the whole item.
    """

    key: str
    title: str
    format: str | Callable[[Item], str]
    unit: str = ""
    direction: Literal["", "higher", "lower"] = ""
    group: Literal["setting", "result", "cost"] = "result"
    kind: Literal["number", "words", "name"] = "number"

    @property
    def heading(self) -> str:
        """The title with what a reader must know of the numbers beneath."""
        unit = f" {self.unit}" if self.unit and self.unit not in _IN_CELL else ""
        return f"{self.title}{_ARROWS[self.direction]}{unit}"

    def cell(self, item: Item) -> str:
        """Return the text of an item's cell; a dash where nothing was measured."""
        if callable(self.format):
            return self.format(item)
        value = getattr(item, self.key)
        return number(value, self.format, _IN_CELL.get(self.unit, ""), _SCALES.get(self.unit, 1))


@dataclass(frozen=True)
class Sheet(Generic[Item]):
    """A table with its title; Markdown, page and terminal each lay it out in their own way."""

    title: str
    columns: list[Column[Item]]
    items: list[Item]

    @property
    def rows(self) -> list[list[str]]:
        """The cells, row by row."""
        return [[column.cell(item) for column in self.columns] for item in self.items]

    def of(self, *groups: str) -> "Sheet[Item]":
        """Return the first column, which names the items, and those of these groups."""
        kept = [column for column in self.columns[1:] if column.group in groups]
        return Sheet(self.title, [self.columns[0], *kept], self.items)


def words(key: str, title: str, **options: Any) -> Column:
    """Return a column of the text under a key."""
    return Column(key, title, lambda item: getattr(item, key), kind="words", **options)
