"""A channel: which slice of a weight matrix is trained, how it is read and written, and how its gradient is formed."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from .autograd import RowGradient


class OutChannel:
    """Channel `out`: rows of W (d_out, d_in), that is output neurons, with their bias entries.

    Conv1D stores W transposed; reading and writing hide that, so values are (k, d_in) either way.
    """

    def __init__(self, base_layer: nn.Module):
        self.axis = 1 if isinstance(base_layer, Conv1D) else 0
        shape = base_layer.weight.shape
        self.out_features = getattr(base_layer, "out_features", shape[self.axis])
        self.in_features = getattr(base_layer, "in_features", shape[1 - self.axis])

    @property
    def units(self) -> int:
        """How many rows there are to choose from."""
        return self.out_features

    def shape(self, rows: int) -> tuple[int, int]:
        """Shape of the trained update of `rows` rows."""
        return rows, self.in_features

    def read(self, weight: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """A copy of rows `ids` (k,) of the stored weight, (k, d_in)."""
        rows = weight.detach().index_select(self.axis, ids)
        return rows.t() if self.axis else rows

    def write(self, weight: torch.Tensor, ids: torch.Tensor, values: torch.Tensor) -> None:
        """Write `values` (k, d_in) into rows `ids` (k,) of the stored weight, in place."""
        weight.detach().index_copy_(self.axis, ids, values.t() if self.axis else values)

    def dense(self, ids: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        """The update (k, d_in) scattered into a zero matrix laid out as the stored weight."""
        full = delta.new_zeros(self.out_features, self.in_features).index_copy_(0, ids, delta)
        return full.t().contiguous() if self.axis else full

    def with_gradient(self, y, x, ids, delta, bias, after_backward) -> torch.Tensor:
        """`y` (..., d_out) unchanged, with the gradient of the written rows attached."""
        return RowGradient.apply(y, x, ids, delta, bias, after_backward)

    def with_update(self, y, x, ids, delta, bias) -> torch.Tensor:
        """`y` (..., d_out) plus the update's own product with `x` (..., d_in), k rows wide."""
        update = functional.linear(x, delta.to(x.dtype), None if bias is None else bias.to(x.dtype))
        return y.index_add(-1, ids, update.to(y.dtype))


CHANNELS = {"out": OutChannel}
