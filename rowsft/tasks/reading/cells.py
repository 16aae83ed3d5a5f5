"""One cell as text: what is missing, nested or not text is refused, naming its place."""

from dataclasses import dataclass
from typing import Any

from rowsft.errors import UserError, shortened

#: How true and false are written as text, as JSON writes them.
WORDS = {True: "true", False: "false"}


@dataclass(frozen=True)
class NotText:
    """A value that no cell of text may hold: `what` says which."""

    what: str


class MayBeEmpty(str):
    """The name of a column whose cells may be empty: they are read as an empty text."""


def place(source: str, unit: str, number: int) -> str:
    """Where a row stands, as messages name it: `reviews.csv, line 7`."""
    return f"{source}, {unit} {number}"


def checked(value: Any, column: str, source: str, unit: str, number: int) -> str:
    """`value` as it stands if it is text that says something. Raises UserError naming the place and the column.

    Refused: nothing or nothing but blanks (unless the column may be empty), lists and objects, half of a surrogate
    pair, the character NUL.
    """
    if type(value) is str and value and not value.isspace() and "\0" not in value and _has_bytes(value):
        return value
    if isinstance(column, MayBeEmpty) and is_empty(value):
        return ""
    raise UserError(f"{place(source, unit, number)}: {_fault(value, column)}")


def checked_list(value: Any, column: str, source: str, unit: str, number: int) -> list[str]:
    """`value` if it is a list of texts as `checked` takes them. Raises UserError naming the place and the element."""
    name = column.removesuffix("[]")
    if not isinstance(value, list):
        shown = f"the text {shortened(value)}" if isinstance(value, str) else _described(value)
        fault = f"no value in column {shortened(name)}" if value is None else f"column {shortened(name)} holds {shown}"
        raise UserError(f"{place(source, unit, number)}: {fault}; expected a list of texts")
    return [checked(one, f"{name}[{i}]", source, unit, number) for i, one in enumerate(value)]


def is_empty(value: Any) -> bool:
    """Whether a cell holds nothing, or nothing but blanks."""
    return value is None or (isinstance(value, str) and not value.strip())


def _has_bytes(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _fault(value: Any, column: str) -> str:
    column = shortened(column)
    if is_empty(value):
        return f"no value in column {column}; fill it or drop the row (task.data.empty=drop drops all such rows)"
    if not isinstance(value, str):
        return f"column {column} holds {_described(value)}; expected text"
    if "\0" in value:
        return f"column {column} holds the character NUL; drop it"
    return f"column {column} holds half of a surrogate pair, which is no character; write the whole one"


def _described(value: Any) -> str:
    if isinstance(value, NotText):
        return value.what
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "an object"
    return f"a {type(value).__name__}"
