"""A metric of the weights alone: an elementwise quantity, which is summed over every row and column."""

from torch import Tensor

from rowsft.importance import register


@register("row_spread", needs="weights")
def row_spread(weight: Tensor, *, power: int = 4) -> Tensor:
    """w_ij to an even power: the higher, the more single large weights count."""
    return weight**power
