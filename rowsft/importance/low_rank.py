"""lift: rows by their size in the best approximation of the weight by a matrix of low rank."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rowsft.errors import UserError
from rowsft.importance.reduction import blocks, one_per_weight, stored_dim, weight_of, wide, zero_scores
from rowsft.importance.registry import Context, register
from rowsft.importance.seeding import layer_generator
from rowsft.layers.matrix import LinearLayer, has_no_data
from rowsft.selection.channel import Axis
from rowsft.selection.groups import Scores

# Directions that the search keeps for each one that is asked for, as LIFT's released code does, and how often it
# multiplies by the weight and its transpose to tell large singular values from small ones.
_OVERSAMPLING = 2
_ITERATIONS = 2


class Factors(NamedTuple):
    """W_r = left @ right.T of a stored weight (rows, columns): `left` (rows, r) has orthonormal columns, `right`
    (columns, r) orthogonal ones, whose sizes are the singular values."""

    left: Tensor
    right: Tensor


@register("lift", needs="whole weights")
def lift(
    layers: Mapping[str, LinearLayer],
    context: Context,
    axes: Sequence[Axis],
    *,
    rank: int = 128,
    exact: bool = False,
) -> Scores:
    """2-norm of row i of W_r, the best approximation of W of rank r: the row form of LIFT's principal weights.

    LIFT (Liu et al., arXiv 2506.00772) takes the entries that are largest in W_r; see `rowsft.baselines.entries` for
    those. exact: see `factors`.
    """
    check_rank(rank, "importance=lift")
    owners = one_per_weight(layers)
    scores = {}
    for name, layer in context.progress(owners.items(), len(owners)):
        generator = layer_generator(context.seed, f"{name} lift")
        scores[layer.weight] = _of_layer(layer, axes, rank, generator, exact)
    return {name: scores[layer.weight] for name, layer in layers.items()}


def check_rank(rank: int, setting: str) -> None:
    """Raise UserError for a rank that is none, naming the `setting`."""
    if rank < 1:
        raise UserError(f"{setting}: rank={rank}: expected a whole number above 0")


def _of_layer(
    layer: LinearLayer, axes: Sequence[Axis], rank: int, generator: torch.Generator, exact: bool
) -> dict[Axis, Tensor]:
    weight = weight_of(layer)
    if has_no_data(weight):
        return zero_scores(layer, axes)
    left, right = factors(weight, rank, generator, exact)
    # A row of left @ right.T is as long as its coordinates in the orthogonal columns of `right`, and the other way.
    along = ((left * torch.linalg.vector_norm(right, dim=0)).norm(dim=1), right.norm(dim=1))
    return {axis: along[stored_dim(layer, axis)] for axis in axes}


@torch.no_grad()
def factors(weight: Tensor, rank: int, generator: torch.Generator, exact: bool = False) -> Factors:
    """Return the factors of the best approximation of `weight` (rows, columns) of rank r, in 32 bit or wider.

    r is at most the smaller side. By randomised subspace iteration (Halko, Martinsson and Tropp, arXiv 0909.4061,
    algorithm 4.4) with 2 r directions, which start from `generator` on the CPU; exact with as many directions as the
    smaller side has, which `exact` takes. A block of the weight is widened at a time: beside the weight there are
    matrices of 2 r columns alone, or of the smaller side's. All NaN for a weight that is not finite.
    """
    smaller = min(weight.shape)
    rank = min(rank, smaller)
    directions = smaller if exact else min(_OVERSAMPLING * rank, smaller)
    kind = wide(weight.dtype)
    start = torch.randn(weight.shape[1], directions, generator=generator, dtype=kind).to(weight.device)
    image = _times(weight, start)
    if not torch.isfinite(image).all():
        return Factors(
            *(torch.full((side, rank), torch.nan, dtype=kind, device=weight.device) for side in weight.shape)
        )
    basis = torch.linalg.qr(image).Q
    # With all directions the first basis is of the whole space.
    for _ in range(_ITERATIONS if directions < smaller else 0):
        basis = torch.linalg.qr(_times(weight, torch.linalg.qr(_transposed_times(weight, basis)).Q)).Q
    right, values, turn = torch.linalg.svd(_transposed_times(weight, basis), full_matrices=False)
    return Factors(basis @ turn[:rank].T, right[:, :rank] * values[:rank])


def _times(weight: Tensor, matrix: Tensor) -> Tensor:
    """weight @ matrix."""
    product = matrix.new_empty(len(weight), matrix.shape[1])
    for rows in blocks(weight):
        torch.mm(weight[rows].to(matrix.dtype), matrix, out=product[rows])
    return product


def _transposed_times(weight: Tensor, matrix: Tensor) -> Tensor:
    """weight.T @ matrix."""
    product = matrix.new_zeros(weight.shape[1], matrix.shape[1])
    for rows in blocks(weight):
        product.addmm_(weight[rows].to(matrix.dtype).T, matrix[rows])
    return product
