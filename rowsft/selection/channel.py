"""A channel: whether rows, columns or both of a layer are trained, and how a size is divided between them.

Beside it the names of the scopes and of the modes of attention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Axis = Literal["rows", "columns"]
AXES: tuple[Axis, Axis] = ("rows", "columns")


@dataclass(frozen=True)
class Channel:
    """What a layer may train.

    split: the sizes (of rows, of columns) that a layer gets when k rows and k columns are asked for, each maybe a count
    of its own; None where layers do not get their sizes one by one.
    """

    has_rows: bool
    has_columns: bool
    split: Callable[[int, int], tuple[int, int]] | None


CHANNELS = {
    "rows": Channel(True, False, lambda rows, columns: (rows, 0)),
    "columns": Channel(False, True, lambda rows, columns: (0, columns)),
    "both": Channel(True, True, lambda rows, columns: ((rows + 1) // 2, columns // 2)),
    # One set of hidden units couples the rows of some layers with the columns of others.
    "neurons": Channel(True, True, None),
}

SCOPES = ("layer", "global")
ATTENTION = ("linear", "grouped", "skip")
