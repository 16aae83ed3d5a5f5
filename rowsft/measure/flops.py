"""Floating-point operations of fused attention, with fewer heads of keys than of queries too.

torch's own count refuses such grouped heads before torch 2.12.
"""

from collections.abc import Callable, Sequence

from rowsft.compat.torch import ATTENTION as FORWARD
from rowsft.compat.torch import ATTENTION_BACKWARD as BACKWARD


def attention_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], products: int = 1) -> int:
    """Operations of `products` pairs of products, scores and weighted sum, as the number of query heads pays for them.

    Shapes are (batch, heads, tokens, width). A multiplication and an addition are two operations.
    """
    batch, heads, queries, width = query
    return products * 2 * batch * heads * queries * key[2] * (width + value[3])


def attention_backward_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int]) -> int:
    """Operations of its backward: the scores again, and a product for each of the two gradients of either product."""
    return attention_flops(query, key, value, products=2) + attention_flops(query, key, (*value[:3], 0))


def grouped_attention() -> dict[object, Callable[..., int]]:
    """The counts of a GPU's kernels as FlopCounterMode's `custom_mapping`; torch counts none of a CPU's."""

    def forward(query, key, value, *args, out_shape=None, **kwargs) -> int:
        return attention_flops(query, key, value)

    def backward(gradient, query, key, value, *args, out_shape=None, **kwargs) -> int:
        return attention_backward_flops(query, key, value)

    return dict.fromkeys(FORWARD[:-1], forward) | dict.fromkeys(BACKWARD[:-1], backward)
