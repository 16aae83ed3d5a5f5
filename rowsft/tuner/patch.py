"""Rows written into a frozen weight, with the originals that take them back bit for bit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.autograd.grad_mode import _unsafe_preserve_version_counter


@dataclass(frozen=True)
class Update:
    """One adapter's part of a layer: ids (k,) int64, delta (k, d_in), bias (k,) or None."""

    ids: torch.Tensor
    delta: torch.Tensor
    bias: torch.Tensor | None

    @property
    def place(self) -> tuple:
        """Where the update goes; a patch serves as long as this stays the same."""
        return self.ids.data_ptr(), self.ids._version, self.bias is None

    @property
    def state(self) -> tuple:
        """What the update holds, as far as autograd's version counters can tell."""
        bias = () if self.bias is None else (self.bias.data_ptr(), self.bias._version)
        return self.delta.data_ptr(), self.delta._version, *bias


class Patch:
    """The rows that the given updates touch in one weight (and bias): W[rows] = W0 + sum of deltas.

    Keeps W0 of the union of the updates' rows in the weight's own dtype. Sums are formed in 32 bit or wider and rounded
    once. `tensors` is `{"weight": W, "bias": b}` throughout, bias only if the layer has one; they are written in place.
    """

    def __init__(self, channel, tensors: dict[str, torch.Tensor], updates: list[Update]):
        self.channel = channel
        self.place = _places(updates)
        # Held so that no other tensor can come to lie at their addresses.
        self.held = [update.ids for update in updates]
        self.ids, positions = torch.unique(torch.cat(self.held), return_inverse=True)
        self.positions = positions.split([len(ids) for ids in self.held])
        self.rows = channel.read(tensors["weight"], self.ids)
        self.bias = None
        if any(update.bias is not None for update in updates):
            self.bias = tensors["bias"].detach().index_select(0, self.ids)
        self.written = None
        self.outdated = False
        self.stamp = _stamp(tensors)

    def fits(self, updates: list[Update]) -> bool:
        """Whether this patch holds the originals of exactly these updates' rows."""
        return self.place == _places(updates)

    def values(self, updates: list[Update]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The rows (k, d_in) and bias entries (k,) or None as they are to be written, in the weight's dtype."""
        rows = _sum(self.rows, self.positions, [update.delta for update in updates])
        bias = self.bias
        if bias is not None:
            bias = _sum(bias, self.positions, [update.bias for update in updates])
        return rows, bias

    @torch.no_grad()
    def write(self, tensors: dict[str, torch.Tensor], updates: list[Update]) -> None:
        """Bring the rows up to date; does nothing when no update has changed since the last write."""
        state = [update.state for update in updates]
        if self.written != state:
            self._put(tensors, *self.values(updates))
        elif self.outdated:
            # Optimizers may write through `.data` or raw pointers, which no version counter sees, so rows are rewritten
            # after every backward. A graph that still waits for its own backward must not be told of an equal rewrite.
            with _unsafe_preserve_version_counter(tuple(tensors.values())):
                self._put(tensors, *self.values(updates))
        self.written, self.outdated, self.stamp = state, False, _stamp(tensors)

    @torch.no_grad()
    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Write the originals back."""
        self.put_originals(tensors)
        self.written, self.stamp = None, _stamp(tensors)

    @torch.no_grad()
    def put_originals(self, tensors: dict[str, torch.Tensor]) -> None:
        """Write the originals into any tensors of the same layout, such as a copy of the base layer's."""
        self._put(tensors, self.rows, self.bias)

    def intact(self, tensors: dict[str, torch.Tensor]) -> bool:
        """Whether nobody else has replaced, moved or written the tensors since this patch last did."""
        return self.stamp == _stamp(tensors)

    def renew_stamp(self, tensors: dict[str, torch.Tensor]) -> None:
        """Accept the tensors as they are: a copied layer has copies of them at other addresses."""
        self.stamp = _stamp(tensors)

    def _put(self, tensors, rows, bias) -> None:
        self.channel.write(tensors["weight"], self.ids, rows)
        if bias is not None:
            tensors["bias"].detach().index_copy_(0, self.ids, bias)


def _sum(original: torch.Tensor, positions, deltas) -> torch.Tensor:
    wide = [delta.dtype for delta in deltas if delta is not None]
    total = original.to(max([torch.float32, original.dtype, *wide], key=lambda dtype: dtype.itemsize), copy=True)
    for position, delta in zip(positions, deltas, strict=True):
        if delta is not None:
            total.index_add_(0, position, delta.detach().to(total.dtype))
    return total.to(original.dtype)


def _places(updates: list[Update]) -> list[tuple]:
    return [update.place for update in updates]


def _stamp(tensors: dict[str, torch.Tensor]) -> list[tuple]:
    return [(name, id(tensor), tensor.data_ptr(), tensor._version) for name, tensor in tensors.items()]
