"""Rows and columns written into a frozen weight, with the originals that take them back bit for bit."""

from __future__ import annotations

import torch
from torch import nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter

from .matrix import address_of, as_matrix, other_rows
from .update import Update


class Patch:
    """The entries that the given updates touch in one layer's weight (and bias): W = W0 + sum of the updates.

    The originals are kept as two blocks that share no entry, in the weight's own dtype: the union of the updates' rows,
    (kr, d_in), and the union of their columns in all other rows, (d_out - kr, kc). Sums are formed in 32 bit or wider
    and rounded once, also where rows of one update cross columns of another. `tensors` is `{"weight": W, "bias": b}`
    throughout, bias only if the layer has one; they are written in place.
    """

    def __init__(self, layer: nn.Module, tensors: dict[str, torch.Tensor], updates: list[Update]):
        self.layer = layer
        self.place = _places(updates)
        # Held so that no other tensor can come to lie at their addresses.
        self.held = [(update.rows, update.columns) for update in updates]
        self.rows, self.row_positions = _union([update.rows for update in updates])
        self.columns, self.column_positions = _union([update.columns for update in updates])
        matrix = as_matrix(layer, tensors["weight"].detach())
        self.others = None
        if self.rows is not None and self.columns is not None:
            self.others = other_rows(self.rows, len(matrix))
        self.crossings = [self._crossing(update, len(matrix)) for update in updates]
        self.row_values = self.column_values = self.bias = None
        if self.rows is not None:
            self.row_values = matrix.index_select(0, self.rows)
        if self.columns is not None:
            self.column_values = matrix[self._column_index()]
        if any(update.bias is not None for update in updates):
            self.bias = tensors["bias"].detach().index_select(0, self.rows)
        self.written = None
        self.updates: list[Update] = []
        self.outdated = False
        self.stamp = _stamp(tensors)

    def _column_index(self) -> tuple:
        return (slice(None) if self.others is None else self.others[:, None]), self.columns

    def _crossing(self, update: Update, d_out: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """Where an update's columns meet rows of other updates; None when they meet none.

        Positions in `self.rows` of the rows that the update's columns run through, their positions in its own
        column_delta, and the positions in column_delta of `self.others`.
        """
        own_rows = 0 if update.rows is None else len(update.rows)
        if update.columns is None or self.rows is None or own_rows == len(self.rows):
            return None
        position = torch.full((d_out,), -1, device=self.rows.device)
        own = torch.arange(d_out, device=self.rows.device) if update.others is None else update.others
        position[own] = torch.arange(len(own), device=self.rows.device)
        met = (position[self.rows] >= 0).nonzero().flatten()
        return met, position[self.rows[met]], position[self.others]

    def fits(self, updates: list[Update]) -> bool:
        """Whether this patch holds the originals of exactly the entries that these updates touch."""
        return self.place == _places(updates)

    def values(self, updates: list[Update]) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """The row block, the column block and the bias entries as they are to be written, in the weight's dtype."""
        rows, columns, bias = (_widened(block, updates) for block in (self.row_values, self.column_values, self.bias))
        for update, at_rows, at_columns, crossing in zip(
            updates, self.row_positions, self.column_positions, self.crossings, strict=True
        ):
            if update.rows is not None:
                rows.index_add_(0, at_rows, update.delta.detach().to(rows.dtype))
            if update.bias is not None:
                bias.index_add_(0, at_rows, update.bias.detach().to(bias.dtype))
            if update.columns is not None:
                delta = update.column_delta.detach().to(columns.dtype)
                if crossing is not None:
                    met, own, others = crossing
                    rows.index_put_((met[:, None], update.columns), delta[own], accumulate=True)
                    delta = delta[others]
                columns.index_add_(1, at_columns, delta)
        originals = (self.row_values, self.column_values, self.bias)
        return tuple(
            None if original is None else total.to(original.dtype)
            for total, original in zip((rows, columns, bias), originals, strict=True)
        )

    @torch.no_grad()
    def write(self, tensors: dict[str, torch.Tensor], updates: list[Update]) -> None:
        """Bring the entries up to date; does nothing when no update has changed since the last write."""
        state = [update.state for update in updates]
        if self.written != state:
            self._put(tensors, *self.values(updates))
        elif self.outdated:
            # Optimizers may write through `.data` or raw pointers, which no version counter sees, so the entries are
            # rewritten after every backward. A graph that still waits for its own backward must not be told of an
            # equal rewrite.
            with _unsafe_preserve_version_counter(tuple(tensors.values())):
                self._put(tensors, *self.values(updates))
        self.written, self.updates, self.outdated, self.stamp = state, updates, False, _stamp(tensors)

    @torch.no_grad()
    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Write the originals back."""
        self.put_originals(tensors)
        self.written, self.stamp = None, _stamp(tensors)

    @torch.no_grad()
    def put_originals(self, tensors: dict[str, torch.Tensor]) -> None:
        """Write the originals into any tensors of the same layout, such as a copy of the base layer's."""
        self._put(tensors, self.row_values, self.column_values, self.bias)

    def intact(self, tensors: dict[str, torch.Tensor]) -> bool:
        """Whether nobody else has replaced, moved or written the tensors since this patch last did."""
        return self.stamp == _stamp(tensors)

    def still_holds(self, tensors: dict[str, torch.Tensor]) -> bool:
        """Whether the same tensors were written since, but these entries with what they held.

        DDP does so when it wraps a model: it broadcasts the first process's tensors to all.
        """
        if [stamp[:-1] for stamp in self.stamp] != [stamp[:-1] for stamp in _stamp(tensors)] or self.written is None:
            return False
        matrix = as_matrix(self.layer, tensors["weight"].detach())
        rows, columns, bias = self.values(self.updates)
        return (
            (rows is None or torch.equal(matrix.index_select(0, self.rows), rows))
            and (columns is None or torch.equal(matrix[self._column_index()], columns))
            and (bias is None or torch.equal(tensors["bias"].detach().index_select(0, self.rows), bias))
        )

    def renew_stamp(self, tensors: dict[str, torch.Tensor]) -> None:
        """Accept the tensors as they are: a copied layer has copies of them at other addresses."""
        self.stamp = _stamp(tensors)

    def _put(self, tensors, rows, columns, bias) -> None:
        matrix = as_matrix(self.layer, tensors["weight"].detach())
        if columns is not None:
            matrix[self._column_index()] = columns
        if rows is not None:
            matrix.index_copy_(0, self.rows, rows)
        if bias is not None:
            tensors["bias"].detach().index_copy_(0, self.rows, bias)


def _union(ids: list[torch.Tensor | None]) -> tuple[torch.Tensor | None, list[torch.Tensor | None]]:
    """The distinct ids of all updates, and where each update's own lie among them."""
    given = [each for each in ids if each is not None]
    if not given:
        return None, [None] * len(ids)
    if len(given) == 1:
        # Distinct already; a copy, so that the originals go back to where they came from whatever becomes of the ids.
        union = given[0].clone()
        return union, [None if each is None else torch.arange(len(union), device=union.device) for each in ids]
    union = torch.cat(given).unique()
    return union, [None if each is None else torch.searchsorted(union, each) for each in ids]


def _widened(original: torch.Tensor | None, updates: list[Update]) -> torch.Tensor | None:
    """A copy of the originals in the widest dtype of theirs, the updates' and 32 bit."""
    if original is None:
        return None
    deltas = [value.dtype for update in updates for value in (update.delta, update.column_delta) if value is not None]
    return original.to(max([torch.float32, original.dtype, *deltas], key=lambda dtype: dtype.itemsize), copy=True)


def _places(updates: list[Update]) -> list[tuple]:
    return [update.place for update in updates]


def _stamp(tensors: dict[str, torch.Tensor]) -> list[tuple]:
    return [(name, id(tensor), address_of(tensor), tensor._version) for name, tensor in tensors.items()]
