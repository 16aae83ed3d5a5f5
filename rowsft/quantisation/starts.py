"""What an adapter of low rank and its quantised base may start from, so that together they are close to the weight.

The base belongs to the start: it is the quantised remainder of what the adapter holds, and replaces the weight. Every
adapter has scale 1.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor

from rowsft.quantisation.low_rank import Factors, principal


class Start(NamedTuple):
    """A base after quantising, float32 (d_out, d_in), and the adapter's factors; the layer computes base + B A."""

    base: Tensor
    factors: Factors


def loftq(
    weight: Tensor, quantise: Callable[[Tensor], Tensor], rank: int, iterations: int, svd_iterations: int | None = None
) -> Iterator[Start]:
    """Yield LoftQ's start after each of `iterations` alternating steps (Li et al., arXiv 2310.08659, algorithm 1).

    A step quantises what the adapter leaves of `weight` (d_out, d_in), from an adapter of zero on, and takes the
    principal components of that error. The error need not fall in every step. svd_iterations: see `principal`.
    """
    rest = weight
    for _ in range(iterations):
        base = quantise(rest)
        factors = principal(weight - base, rank, svd_iterations)
        yield Start(base, factors)
        rest = weight - factors.product


def pissa(
    weight: Tensor, quantise: Callable[[Tensor], Tensor], rank: int, iterations: int, svd_iterations: int | None = None
) -> Iterator[Start]:
    """Yield PiSSA's start on a quantised base after each of `iterations` steps (Meng et al., arXiv 2404.02948).

    The first takes the principal components of `weight` and quantises the rest; each further one takes those of
    weight - base, and quantises the new rest. The base comes last, so the rest of its error is not in the adapter.
    """
    base = None
    for _ in range(iterations):
        factors = principal(weight if base is None else weight - base, rank, svd_iterations)
        base = quantise(weight - factors.product)
        yield Start(base, factors)
