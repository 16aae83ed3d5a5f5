"""Magnitudes of the weights."""

from torch import Tensor

from rowsft.importance.registry import register


@register("l1", needs="weights")
def l1(weight: Tensor) -> Tensor:
    """abs(w_ij)."""
    return weight.abs()


@register("l2", needs="weights")
def l2(weight: Tensor) -> Tensor:
    """w_ij squared."""
    return weight.square()
