"""Magnitudes of the weights, summed in 32-bit or better."""

import torch
from torch import Tensor

from rowsft.importance.registry import register


@register("l1", needs="weights")
def l1(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Sum over j of abs(w_ij)."""
    return _wide(weight).abs().sum(dim=1)


@register("l2", needs="weights")
def l2(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Sum over j of w_ij squared."""
    return _wide(weight).square().sum(dim=1)


def _wide(weight: Tensor) -> Tensor:
    return weight.to(torch.promote_types(weight.dtype, torch.float32))
