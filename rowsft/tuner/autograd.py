"""The gradient of rows that are already written into the frozen weight."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.autograd.function import once_differentiable


class RowGradient(torch.autograd.Function):
    """Identity on the layer's output that computes the gradient of the chosen rows on the way back.

    The base layer has already multiplied with W[ids] = W0 + delta, so forward has nothing to add, and the gradient with
    respect to the input flows through the base layer as for any frozen layer. Only delta's gradient is missing:
    dDelta = dY[:, ids]^T X, a k/d_out part of a full weight gradient, and dbias = the sum of dY[:, ids].
    """

    @staticmethod
    def forward(
        ctx,
        y: torch.Tensor,
        x: torch.Tensor,
        ids: torch.Tensor,
        delta: torch.Tensor,
        bias: torch.Tensor | None,
        after_backward: Callable[[], None],
    ) -> torch.Tensor:
        """y (..., d_out), x (..., d_in), ids (k,), delta (k, d_in), bias (k,) or None -> y, sharing its storage."""
        needs_delta = ctx.needs_input_grad[3]
        ctx.save_for_backward(ids, x if needs_delta else None)
        ctx.delta_dtype = delta.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.after_backward = after_backward
        # Returned as it is, y would become a view made by a custom function, which forbids in-place operations on the
        # layer's output (OLMo clamps its projections in place).
        return y.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y: torch.Tensor):
        ids, x = ctx.saved_tensors
        rows = grad_y.reshape(-1, grad_y.shape[-1]).index_select(1, ids)
        grad_delta = grad_bias = None
        if ctx.needs_input_grad[3]:
            tokens = x.reshape(-1, x.shape[-1]).to(rows.dtype)
            grad_delta = (rows.t() @ tokens).to(ctx.delta_dtype)
        if ctx.needs_input_grad[4]:
            grad_bias = rows.sum(0, dtype=ctx.bias_dtype)
        ctx.after_backward()
        return grad_y, None, None, grad_delta, grad_bias, None
