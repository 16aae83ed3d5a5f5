"""LoRA that computes its input again in backward, as the rows do: which part of a saving is the trick's, not the rows'.

The layer's r-wide product stays saved, since it is no function of what the frozen network keeps.
"""

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from rowsft.tuner.rebuild import Source, source_of


class LoraProduct(torch.autograd.Function):
    """scale * x A^T B^T, with x had from `source` in backward."""

    @staticmethod
    def forward(ctx, x, a, b, scale, source):
        """x (..., d_in), a (r, d_in), b (d_out, r) -> (..., d_out)."""
        rebuilt = isinstance(source, Source)
        ctx.source, ctx.scale = source.used() if rebuilt else None, scale
        hidden = nn.functional.linear(x, a.to(x.dtype))
        ctx.save_for_backward(None if rebuilt else x, hidden, a, b)
        return nn.functional.linear(hidden, b.to(x.dtype)).mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, hidden, a, b = ctx.saved_tensors
        grad_hidden = (grad @ b.to(grad.dtype)).mul_(ctx.scale)
        if ctx.source is not None:
            x = ctx.source.shared_value()
        flat = grad.flatten(0, -2)
        grad_b = (flat.t() @ hidden.flatten(0, -2)).mul_(ctx.scale).to(b.dtype)
        grad_a = (grad_hidden.flatten(0, -2).t() @ x.flatten(0, -2)).to(a.dtype)
        grad_x = grad_hidden @ a.to(grad.dtype) if ctx.needs_input_grad[0] else None
        return grad_x, grad_a, grad_b, None, None


class RebuiltLora(nn.Module):
    """A frozen linear layer with a LoRA of rank r, alpha = r, and 32-bit factors, started as PEFT starts them."""

    def __init__(self, base_layer: nn.Linear, rank: int):
        super().__init__()
        self.base_layer = base_layer
        d_out, d_in = base_layer.weight.shape
        made = {"dtype": torch.float32, "device": base_layer.weight.device}
        self.a = nn.Parameter(torch.empty(rank, d_in, **made))
        nn.init.kaiming_uniform_(self.a, a=5**0.5)
        self.b = nn.Parameter(torch.zeros(d_out, rank, **made))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        source = source_of(x) if torch.is_grad_enabled() else None
        return self.base_layer(x) + LoraProduct.apply(x, self.a, self.b, 1.0, source)
