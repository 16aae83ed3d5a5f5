"""Ids of the rows and columns that a layer trains, and the checks that they are ones of that layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from rowsft.errors import UserError
from rowsft.layers.matrix import has_no_data

PLACEHOLDER_ID = -1


class Chosen(NamedTuple):
    """The trained part of a layer: `rows` (kr,) and `columns` (kc,), int64 ids, each maybe empty.

    Rows are trained whole (kr, d_in), columns without the entries that the rows have already: (d_out - kr, kc).
    """

    rows: torch.Tensor
    columns: torch.Tensor


def overlap(first: Mapping[str, Chosen], second: Mapping[str, Chosen]) -> float:
    """Return the share of the smaller choice, rows and columns of all layers, that the other one has too."""
    both = sizes = others = 0
    for name in first.keys() | second.keys():
        for axis in range(2):
            ids, other = (set(choice[name][axis].tolist()) if name in choice else set() for choice in (first, second))
            both, sizes, others = both + len(ids & other), sizes + len(ids), others + len(other)
    return both / max(1, min(sizes, others))


def placeholders(count: int) -> torch.Tensor:
    """Return ids (count,) that a checkpoint will bring."""
    return torch.full((count,), PLACEHOLDER_ID)


def given_ids(given: Sequence[int] | torch.Tensor, axis: str, layer: str, count: int) -> torch.Tensor:
    """Return ids that a user gave, as int64 (k,) on the CPU, checked as `check_ids` does.

    Raises UserError for values that are no whole numbers: a mask or scores would turn into some ids or other.
    """
    ids = torch.as_tensor(given, device="cpu").flatten()
    if len(ids) and (ids.is_floating_point() or ids.is_complex() or ids.dtype is torch.bool):
        raise UserError(
            f"{axis}_ids of layer {layer} are {str(ids.dtype).removeprefix('torch.')} values; give the {axis}s' ids, "
            "whole numbers from 0"
        )
    ids = ids.to(torch.int64)
    check_ids(ids, axis, layer, count)
    return ids


def check_layer_ids(
    rows: torch.Tensor | None, columns: torch.Tensor | None, layer: str, shape: tuple[int, int], adapter: str
) -> None:
    """Refuse placeholders, and ids that are not different rows and columns of a layer of `shape` (d_out, d_in)."""
    for axis, ids, count in (("row", rows, shape[0]), ("column", columns, shape[1])):
        if ids is None or has_no_data(ids):
            continue
        if (ids == PLACEHOLDER_ID).any():
            raise UserError(
                f"adapter {adapter!r} has no {axis} ids for layer {layer}: its config came from a saved adapter, but "
                "the adapter's tensors were not loaded; load both with PeftModel.from_pretrained, or choose new "
                f"{axis}s with rows_in_checkpoint=False"
            )
        check_ids(ids, axis, layer, count)


def check_ids(ids: torch.Tensor, axis: str, layer: str, count: int) -> None:
    """Refuse ids (k,) that are not different ones of the layer's `count` rows or columns (`axis`: row or column)."""
    if len(ids) and (ids.min() < 0 or ids.max() >= count):
        raise UserError(
            f"{axis} ids of layer {layer} run from {ids.min()} to {ids.max()}, but it has {axis}s 0 to {count - 1}; "
            f"use the base model that the {axis}s were chosen on"
        )
    if len(ids.unique()) != len(ids):
        raise UserError(f"{axis} ids of layer {layer} name a {axis} twice; give each {axis} once")
