"""The gradient of rows and columns that are already written into the frozen weight."""

from __future__ import annotations

import torch

from rowsft.compat.torch import plain_apply

from .contents import Claim
from .rebuild import Source
from .update import Update


def with_gradient(
    y: torch.Tensor, x: torch.Tensor, update: Update, claim: Claim | None, source: Source | None
) -> torch.Tensor:
    """`y` (..., d_out) unchanged, with the gradient of the update's values, which are in the weight already, attached.

    x (..., d_in): the layer's input. claim: on the base weight, until the backward pass has ended. source: where
    backward has x from; None keeps it.
    """
    apply = UpdateGradient.apply if torch.compiler.is_compiling() else _apply
    return apply(
        y,
        x,
        update.rows,
        update.delta,
        update.bias,
        update.columns,
        update.column_delta,
        update.others,
        claim,
        source,
    )


class UpdateGradient(torch.autograd.Function):
    """Identity on the layer's output that computes the gradient of the chosen rows and columns on the way back.

    The base layer has already multiplied with the written W, so forward has nothing to add, and the gradient with
    respect to the input flows through the base layer as for any frozen layer. Only the updates' gradients are missing:
    dDelta = dY[:, rows]^T X and dbias = the sum of dY[:, rows], a kr/d_out part of a full weight gradient; and
    dDelta = (dY^T X[:, columns])[others], for which nothing of X but the chosen columns has to be kept.

    Its backward runs before the base layer's, so it also sees to it that the weight holds what forward saw.
    """

    @staticmethod
    def forward(
        ctx,
        y: torch.Tensor,
        x: torch.Tensor,
        rows: torch.Tensor | None,
        delta: torch.Tensor | None,
        bias: torch.Tensor | None,
        columns: torch.Tensor | None,
        column_delta: torch.Tensor | None,
        others: torch.Tensor | None,
        claim: Claim | None,
        source: Source | None,
    ) -> torch.Tensor:
        """y (..., d_out), x (..., d_in), the fields of an `Update`, the claim on the base weight, and where x can be
        had from in backward (None: x is kept) -> y, sharing its storage.
        """
        _, _, _, ctx.needs_delta, ctx.needs_bias, _, ctx.needs_column_delta, *_ = ctx.needs_input_grad
        kept = ctx.source = None
        if ctx.needs_delta:
            kept, ctx.source = (x, None) if source is None else (None, source)
        elif ctx.needs_column_delta and columns is not None:
            # In the output's dtype, which under autocast is the one that the base layer multiplied in.
            kept = x.index_select(-1, columns).to(y.dtype)
        ctx.save_for_backward(kept, rows, columns if ctx.needs_delta and ctx.needs_column_delta else None, others)
        ctx.dtypes = [None if value is None else value.dtype for value in (delta, bias, column_delta)]
        ctx.claim = claim
        values = () if torch.compiler.is_compiling() else (delta, bias, column_delta)
        ctx.trained = [value for value in values if value is not None and value.requires_grad]
        # Returned as it is, y would become a view made by a custom function, which forbids in-place operations on the
        # layer's output (OLMo clamps its projections in place).
        return y.detach()

    @staticmethod
    def backward(ctx, grad_y: torch.Tensor):
        # The marker costs as much as the rest, and is needed only where the gradient's own graph is recorded.
        return (_recorded_backward if torch.is_grad_enabled() else _backward)(ctx, grad_y)


def _backward(ctx, grad_y: torch.Tensor) -> tuple:
    if ctx.claim is not None:
        ctx.claim.during_backward()
    kept, rows, columns, others = ctx.saved_tensors
    grad_delta = grad_bias = grad_column_delta = None
    delta_dtype, bias_dtype, column_delta_dtype = ctx.dtypes
    if ctx.source is not None:
        kept = ctx.source.shared_value()
    if ctx.needs_column_delta:
        grad_column_delta = _column_gradient(grad_y, kept, columns, others).to(column_delta_dtype)
    if ctx.needs_delta or ctx.needs_bias:
        # Selected before it is flattened: a reshape of the whole gradient may be a copy of it.
        grad_rows = grad_y.index_select(-1, rows).reshape(-1, len(rows))
        if ctx.needs_bias:
            grad_bias = grad_rows.sum(0, dtype=bias_dtype)
        if ctx.needs_delta:
            # Where dtypes differ, as under autocast, the few rows are converted and not all of X.
            grad_delta = (grad_rows.to(kept.dtype).t() @ kept.reshape(-1, kept.shape[-1])).to(delta_dtype)
    return grad_y, None, None, grad_delta, grad_bias, None, grad_column_delta, None, None, None


class _OnceDifferentiable(torch.autograd.Function):
    """Passes gradients on and refuses their own backward.

    `once_differentiable` leaves its results without a way to its arguments: `autograd.grad` of chosen inputs would not
    get there and take the second derivative for zero.
    """

    @staticmethod
    def forward(ctx, count, *tensors):
        return tuple(None if each is None else each.detach() for each in tensors[:count])

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(
            "row-SFT layers have no second derivatives (once_differentiable); take them of a merged model, or "
            "under torch.func"
        )


def _recorded_backward(ctx, grad_y: torch.Tensor) -> tuple:
    with torch.no_grad():
        # Without the history of grad_y, which comes back as the arguments of the function below.
        results = _backward(ctx, grad_y)
    kinds = [index for index, each in enumerate(results) if each is not None]
    given = _OnceDifferentiable.apply(len(kinds), *(results[index] for index in kinds), grad_y, *ctx.trained)
    full = [None] * len(results)
    for index, each in zip(kinds, given, strict=True):
        full[index] = each
    return tuple(full)


# The transforms of torch.func never come here.
_apply = plain_apply(UpdateGradient)


def _column_gradient(grad_y, kept, columns, others) -> torch.Tensor:
    """(others, kc), from X itself when `columns` still have to be taken, and from X[:, columns] when it is None."""
    inputs = kept if columns is None else kept.index_select(-1, columns).to(grad_y.dtype)
    gradient = grad_y.reshape(-1, grad_y.shape[-1]).t() @ inputs.reshape(-1, inputs.shape[-1])
    return gradient if others is None else gradient.index_select(0, others)
