"""The entries of a frozen weight that updates are written over, and the originals that take them back bit for bit."""

from __future__ import annotations

import torch
from torch import nn

from rowsft.layers.matrix import as_matrix, other_rows

from .update import Update

#: The row block (kr, d_in), the column block (d_out - kr, kc) and the bias entries (kr,) of a patch; None where not.
Blocks = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]


class Patch:
    """Where the given updates touch one layer's weight (and bias), and what stood there: W = W0 + sum of the updates.

    The entries form two blocks that share none: the union of the updates' rows, (kr, d_in), and the union of their
    columns in all other rows, (d_out - kr, kc). Sums are formed in 32 bit or wider and rounded once, also where rows
    of one update cross columns of another. `tensors` is `{"weight": W, "bias": b}` throughout, bias only if the layer
    has one: plain tensors without a gradient, written in place.
    """

    def __init__(self, layer: nn.Module, tensors: dict[str, torch.Tensor], updates: list[Update]):
        self.layer = layer
        # Held, since their ids are what `fits` goes by.
        self.updates = updates
        self.rows, self.row_positions = _union([update.rows for update in updates])
        self.columns, self.column_positions = _union([update.columns for update in updates])
        d_out = len(as_matrix(layer, tensors["weight"]))
        self.others = None
        if self.rows is not None and self.columns is not None:
            self.others = other_rows(self.rows, d_out)
        self.crossings = [self._crossing(update, d_out) for update in updates]
        self.has_bias = any(update.bias is not None for update in updates)
        self.originals: Blocks = (None, None, None)
        self.has_originals = False

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
        """Whether this patch is of exactly the entries that these updates touch."""
        return updates == self.updates or _places(updates) == _places(self.updates)

    def blocks(self, tensors: dict[str, torch.Tensor]) -> Blocks:
        """Copies of what stands in the entries now."""
        matrix = as_matrix(self.layer, tensors["weight"])
        return (
            None if self.rows is None else matrix.index_select(0, self.rows),
            None if self.columns is None else matrix[self._column_index()],
            tensors["bias"].index_select(0, self.rows) if self.has_bias and self.rows is not None else None,
        )

    def values(self, updates: list[Update]) -> Blocks:
        """The blocks as they are to be written over `originals`, in the weight's dtype."""
        if len(updates) == 1:
            (update,), (rows, columns, bias) = updates, self.originals
            return _sum(rows, update.delta), _sum(columns, update.column_delta), _sum(bias, update.bias)
        rows, columns, bias = (_widened(block, updates) for block in self.originals)
        for update, at_rows, at_columns, crossing in zip(
            updates, self.row_positions, self.column_positions, self.crossings, strict=True
        ):
            _add(rows, at_rows, update.delta)
            _add(bias, at_rows, update.bias)
            if columns is not None and update.columns is not None and update.column_delta is not None:
                delta = update.column_delta.detach().to(columns.dtype)
                if crossing is not None and rows is not None:
                    met, own, others = crossing
                    rows.index_put_((met[:, None], update.columns), delta[own], accumulate=True)
                    delta = delta[others]
                _add(columns, at_columns, delta, axis=1)
        totals = zip((rows, columns, bias), self.originals, strict=True)
        rows, columns, bias = (None if total is None or own is None else total.to(own.dtype) for total, own in totals)
        return rows, columns, bias

    def write(self, tensors: dict[str, torch.Tensor], updates: list[Update]) -> None:
        """Keep the originals and write the updates over them; the tensors hold the originals before."""
        self._keep(tensors)
        self.put(tensors, self.values(updates))

    def _keep(self, tensors: dict[str, torch.Tensor]) -> None:
        """Bring `originals` up to date, in the same memory from one step to the next."""
        if not self.has_originals:
            # Inference tensors could not be renewed outside of inference mode.
            with torch.inference_mode(False):
                self.originals = self.blocks(tensors)
            self.has_originals = True
            return
        rows, columns, bias = self.originals
        matrix = as_matrix(self.layer, tensors["weight"])
        if rows is not None and self.rows is not None:
            wide, wide_rows = _in_words(matrix, rows)
            torch.index_select(wide, 0, self.rows, out=wide_rows)
        if columns is not None and self.columns is not None and self.others is None:
            torch.index_select(matrix, 1, self.columns, out=columns)
        elif columns is not None:
            columns.copy_(matrix[self._column_index()])
        if bias is not None and self.rows is not None:
            torch.index_select(tensors["bias"], 0, self.rows, out=bias)

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Write the originals back, into these tensors or a copy of them."""
        self.put(tensors, self.originals)

    def put(self, tensors: dict[str, torch.Tensor], blocks: Blocks) -> None:
        """Write blocks into the entries."""
        rows, columns, bias = blocks
        matrix = as_matrix(self.layer, tensors["weight"])
        if columns is not None and self.columns is not None and self.others is None:
            # Half the time of the same as an indexed assignment.
            matrix.scatter_(1, self.columns.expand_as(columns), columns)
        elif columns is not None:
            matrix[self._column_index()] = columns
        if rows is not None and self.rows is not None:
            wide, wide_rows = _in_words(matrix, rows)
            wide.index_copy_(0, self.rows, wide_rows)
        if bias is not None and self.rows is not None:
            tensors["bias"].index_copy_(0, self.rows, bias)


def _in_words(matrix: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as words of 8 bytes, where whole rows are copied on a GPU and consist of such.

    Its kernels for indexed copies spend their time on entries, not on bytes; a CPU copies a row at once.
    """
    if matrix.is_cuda:
        matrix, rows = words(matrix, rows)
    return matrix, rows


def words(*matrices: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Matrices of one dtype as words of 8 bytes, in the same memory; as they are where a row is not made of such."""
    for each in matrices:
        size = each.element_size()
        starts = each.storage_offset() * size, each.stride(0) * size, each.shape[1] * size
        if each.stride(1) != 1 or any(start % 8 for start in starts):
            return matrices
    return tuple(each.view(torch.int64) for each in matrices)


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


def _add(block: torch.Tensor | None, places: torch.Tensor | None, values: torch.Tensor | None, axis: int = 0) -> None:
    """Add values, in the block's dtype, to the block's rows or columns in those places; nothing where one is None."""
    if block is not None and places is not None and values is not None:
        block.index_add_(axis, places, values.detach().to(block.dtype))


def _sum(original: torch.Tensor | None, update: torch.Tensor | None) -> torch.Tensor | None:
    """original + update, computed in the wider dtype and rounded once to the original's."""
    if original is None or update is None:
        return None
    if original.dtype is update.dtype:
        return original + update.detach()
    return torch.add(original, update.detach(), out=torch.empty_like(original))


def _widened(original: torch.Tensor | None, updates: list[Update]) -> torch.Tensor | None:
    """A copy of the originals in the widest dtype of theirs, the updates' and 32 bit."""
    if original is None:
        return None
    deltas = [value.dtype for update in updates for value in (update.delta, update.column_delta) if value is not None]
    return original.to(max([torch.float32, original.dtype, *deltas], key=lambda dtype: dtype.itemsize), copy=True)


def _places(updates: list[Update]) -> list[tuple]:
    return [update.place for update in updates]
