"""A channel: whether rows, columns or both of a layer are trained, and how a size is divided between them.

Beside it the names of the scopes and of the modes of attention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Channel:
    """split: the sizes (of rows, of columns) that a layer gets when k_out rows and k_in columns are asked for.

    None where layers do not get their sizes one by one. has_rows, has_columns: what a layer of it may train.
    """

    has_rows: bool
    has_columns: bool
    split: Callable[[int, int], tuple[int, int]] | None


CHANNELS = {
    "out": Channel(True, False, lambda k_out, k_in: (k_out, 0)),
    "in": Channel(False, True, lambda k_out, k_in: (0, k_in)),
    "half": Channel(True, True, lambda k_out, k_in: ((k_out + 1) // 2, k_in // 2)),
    # One set of hidden units couples the rows of some layers with the columns of others.
    "neuron": Channel(True, True, None),
}

SCOPES = ("layer", "global")
ATTENTION = ("linear", "grouped", "skip")
