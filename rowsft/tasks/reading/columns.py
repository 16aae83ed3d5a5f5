"""Columns found by name, with the names that come near where one is missing."""

from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches

from rowsft.errors import UserError, shortened


class MissingColumn(UserError):
    """The data have no column of a name that is asked for."""


def positions(wanted: Sequence[str], header: Sequence[str], where: str, hint: str = "") -> list[int]:
    """Where each wanted column stands in `header`. Raises MissingColumn, and UserError for one that stands twice.

    `hint` is what else may be wrong with the header; it closes the message of a missing column.
    """
    names = [name for name in header if name]
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise UserError(f"{where}: column {shortened(twice[0])} stands twice in the header; rename or drop one")
    for name in wanted:
        if name not in header:
            raise MissingColumn(missing(name, names, where, hint))
    return [list(header).index(name) for name in wanted]


def missing(name: str, present: Sequence[str], where: str, hint: str = "") -> str:
    """The message for a column that is not there."""
    folded = {other.strip().casefold(): other for other in present}
    near = get_close_matches(name.strip().casefold(), folded, n=1, cutoff=0.7)
    advice = hint or (f"did you mean {_shown(folded[near[0]])}?" if near else "name the right one")
    if f'"{name}"' in present:
        # A header in quote marks where quote marks are text: the cells have them too.
        advice = "quote marks are text here; for quoted cells name the file .csv and set task.data.separator"
    shown = shortened(", ".join(map(_shown, present)), 200) or "no names"
    return f"{where}: no column {shortened(name)}; it has {shown}; {advice}"


def _shown(name: str) -> str:
    """A name as it can be told from another: in quote marks where blanks stand around it."""
    return shortened(name if name == name.strip() else repr(name))
