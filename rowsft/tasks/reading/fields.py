"""Names of columns that reach into objects and lists: `question.stem`, `choices.text[]`.

A dot goes into an object; through a list it goes into each element. A name that ends with `[]` means a list of texts,
any other one text. A column that is itself called `a.b` is found first.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rowsft.tasks.reading.cells import WORDS

#: What closes the name of a column of lists.
LIST = "[]"


def is_list(name: str) -> bool:
    """Whether the column holds lists of texts."""
    return name.endswith(LIST)


def bare(name: str) -> str:
    """The name without the mark of a list."""
    return name.removesuffix(LIST)


def top(name: str, present: Sequence[str]) -> str:
    """Which of the columns that are there holds what `name` means; where none does, the name itself."""
    column = bare(name)
    first = column.partition(".")[0]
    return first if column not in present and first in present else column


def path(name: str, present: Sequence[str]) -> list[str]:
    """The keys to follow inside of that column."""
    column = bare(name)
    return [] if column == top(name, present) else column.split(".")[1:]


def reach_in(names: Sequence[str]) -> bool:
    """Whether any of the names may mean something inside of a column."""
    return any("." in name or is_list(name) for name in names)


def cell(row: Mapping[str, Any], name: str) -> Any:
    """What `name` means in an object as JSON has it; None where nothing is there."""
    value = _inside(row[top(name, list(row))], path(name, list(row))) if has(row, name) else None
    if isinstance(value, list):
        return [WORDS[one] if isinstance(one, bool) else one for one in value]
    return value


def has(row: Mapping[str, Any], name: str) -> bool:
    """Whether the object has that column, with the fields that the name goes through, if only as null."""
    return top(name, list(row)) in row and _reaches(row[top(name, list(row))], path(name, list(row)))


def _inside(value: Any, keys: list[str]) -> Any:
    for place, key in enumerate(keys):
        if isinstance(value, list):
            return [_inside(element, keys[place:]) for element in value]
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _reaches(value: Any, keys: list[str]) -> bool:
    if not keys:
        return True
    if isinstance(value, list):
        return not value or any(_reaches(element, keys) for element in value)
    # Null in the place of an object is a gap, not another form.
    return value is None or (isinstance(value, dict) and keys[0] in value and _reaches(value[keys[0]], keys[1:]))
