"""One of the two things that are compared, brought to one form whether it is a run or a benchmark's file."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rowsft.errors import UserError, shortened
from rowsft.store import Record
from rowsft.store.files import LARGEST


@dataclass(frozen=True)
class Side:
    """What was asked for, where it was measured, and the numbers that came out, each flat: {"a.b": value}.

    name: the run's folder or the file. numbers: None where a number was not measured, or came out as nan or infinite.
    notes: one line each. record: the run; None for a benchmark's file.
    """

    kind: Literal["run", "benchmark"]
    name: str
    title: str
    settings: dict[str, object]
    environment: dict[str, object]
    numbers: dict[str, float | int | None]
    notes: list[str] = field(default_factory=list)
    record: Record | None = None


def numbers_in(values: dict[str, object], source: str, meant: Callable[[str], bool]) -> dict[str, float | int | None]:
    """Return the numbers among flat values, and what was not measured; texts and truth values are no numbers.

    source: the file they come from. Raises UserError for a text or truth value under a name that is `meant` to be a
    number's, and for a number beyond any measurement.
    """
    for name, value in values.items():
        too_large = isinstance(value, int | float) and not _is_lost(value) and abs(value) > LARGEST
        if too_large or (isinstance(value, str | bool) and meant(name)):
            raise UserError(
                f"{source}: {name} is {shortened(json.dumps(value))}; expected a number of moderate size, or null "
                "where nothing was measured: measure anew, or correct it"
            )
    return {
        name: None if _is_lost(value) else value
        for name, value in values.items()
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    }


def not_finite_note(values: dict[str, object], known: Sequence[str] = ()) -> list[str]:
    """Return the note on those that are nan or infinite, and on names `known` to have been: shown as not measured."""
    names = dict.fromkeys([*known, *(name for name, value in values.items() if _is_lost(value))])
    return [f"nan or infinite: {', '.join(names)}"] if names else []


def _is_lost(value: object) -> bool:
    # json reads 1e999 as infinite.
    return isinstance(value, float) and not math.isfinite(value)
