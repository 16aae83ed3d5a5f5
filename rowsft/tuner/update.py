"""One adapter's part of a layer: chosen rows and chosen columns with their trained values."""

from __future__ import annotations

import torch
from torch.nn import functional

from rowsft.compat.torch import version_of


class Update:
    """W[rows] += delta, b[rows] += bias, and W[others, columns] += column_delta.

    rows (kr,) int64 with delta (kr, d_in) and bias (kr,); columns (kc,) int64 with column_delta (d_out - kr, kc).
    others (d_out - kr,) int64: the rows that are not chosen, so that crossing entries are trained once, by the rows;
    None stands for all rows. Whatever a layer does not train is None. keeps_input: the adapter's recompute_inputs is
    off.
    """

    __slots__ = ("bias", "column_delta", "columns", "delta", "keeps_input", "others", "place", "rows", "values")

    def __init__(
        self,
        rows: torch.Tensor | None = None,
        delta: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        columns: torch.Tensor | None = None,
        column_delta: torch.Tensor | None = None,
        others: torch.Tensor | None = None,
        keeps_input: bool = False,
    ):
        self.rows, self.delta, self.bias = rows, delta, bias
        self.columns, self.column_delta, self.others = columns, column_delta, others
        self.keeps_input = keeps_input
        #: What is trained: delta, bias and column_delta, as far as there are.
        self.values = [value for value in (delta, bias, column_delta) if value is not None]
        #: Where the update goes; a patch serves as long as this stays the same.
        self.place = _stamp(rows), _stamp(columns), bias is None

    def consists_of(self, rows, delta, bias, columns, column_delta) -> bool:
        """Whether it was made of just these tensors, with the ids that they hold now."""
        return (
            self.delta is delta
            and self.column_delta is column_delta
            and self.bias is bias
            and self.place == (_stamp(rows), _stamp(columns), bias is None)
        )

    @property
    def state(self) -> list[tuple]:
        """What the update holds, as far as autograd's version counters can tell."""
        return [_stamp(value) for value in self.values]

    @property
    def trains(self) -> bool:
        """Whether any of its values requires a gradient."""
        return any(value.requires_grad for value in self.values)

    def detached(self) -> Update:
        """The same update with values that take no gradient."""
        delta, bias, column_delta = (
            None if v is None else v.detach() for v in (self.delta, self.bias, self.column_delta)
        )
        return Update(self.rows, delta, bias, self.columns, column_delta, self.others)

    def added_to(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """`y` (..., d_out) plus the update's own product with `x` (..., d_in), kr rows and kc columns wide."""
        if self.rows is not None and self.delta is not None:
            bias = None if self.bias is None else self.bias.to(x.dtype)
            product = functional.linear(x, self.delta.to(x.dtype), bias)
            y = y.index_add(-1, self.rows, product.to(y.dtype))
        if self.columns is not None and self.column_delta is not None:
            product = functional.linear(x.index_select(-1, self.columns), self.column_delta.to(x.dtype)).to(y.dtype)
            y = y + product if self.others is None else y.index_add(-1, self.others, product)
        return y

    def squared_change(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over the inputs h, the rows of x (n, d_in), of ‖ΔW h‖² as a float64 scalar; biases are no part of it.

        Only what is trained is multiplied. Rows and columns add up: they change different entries of the output.
        """
        total = torch.zeros((), dtype=torch.float64, device=x.device)
        if self.delta is not None:
            total += functional.linear(x, self.delta.to(x.dtype)).square().sum(dtype=torch.float64)
        if self.columns is not None and self.column_delta is not None:
            product = functional.linear(x.index_select(-1, self.columns), self.column_delta.to(x.dtype))
            total += product.square().sum(dtype=torch.float64)
        return total

    def dense(self, d_out: int, d_in: int) -> torch.Tensor:
        """The update as a matrix (d_out, d_in), zero where nothing is trained."""
        value = self.delta if self.delta is not None else self.column_delta
        assert value is not None, "an update trains rows or columns"
        full = value.new_zeros(d_out, d_in)
        if self.columns is not None and self.column_delta is not None:
            others = slice(None) if self.others is None else self.others[:, None]
            full[others, self.columns] = self.column_delta
        if self.rows is not None and self.delta is not None:
            full[self.rows] = self.delta
        return full


def _stamp(tensor: torch.Tensor | None) -> tuple:
    return () if tensor is None else (id(tensor), version_of(tensor))
