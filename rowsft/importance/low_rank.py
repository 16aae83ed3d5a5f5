"""lift: rows by their size in the best approximation of the weight by a matrix of low rank."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rowsft.errors import UserError
from rowsft.importance.reduction import one_per_weight, stored_dim, weight_of, wide, zero_scores
from rowsft.importance.registry import Context, register
from rowsft.layers.matrix import LinearLayer, has_no_data
from rowsft.selection.channel import Axis
from rowsft.selection.groups import Scores

# Entries of the weight that are widened at a time.
_BLOCK = 2**20


class Factors(NamedTuple):
    """W_r = left @ right.T of a stored weight (rows, columns): `left` (rows, r) has orthonormal columns, `right`
    (columns, r) orthogonal ones, whose sizes are the singular values."""

    left: Tensor
    right: Tensor


@register("lift", needs="whole weights")
def lift(layers: Mapping[str, LinearLayer], context: Context, axes: Sequence[Axis], *, rank: int = 128) -> Scores:
    """2-norm of row i of W_r, the best approximation of W of rank r: the row form of LIFT's principal weights.

    LIFT (Liu et al., arXiv 2506.00772) takes the entries that are largest in W_r; see `rowsft.baselines.entries` for
    those.
    """
    check_rank(rank, "importance=lift")
    owners = one_per_weight(layers)
    scores = {layer.weight: _of_layer(layer, axes, rank) for layer in context.progress(owners.values(), len(owners))}
    return {name: scores[layer.weight] for name, layer in layers.items()}


def check_rank(rank: int, setting: str) -> None:
    """Raise UserError for a rank that is none, naming the `setting`."""
    if rank < 1:
        raise UserError(f"{setting}: rank={rank}: expected a whole number above 0")


def _of_layer(layer: LinearLayer, axes: Sequence[Axis], rank: int) -> dict[Axis, Tensor]:
    weight = weight_of(layer)
    if has_no_data(weight):
        return zero_scores(layer, axes)
    left, right = factors(weight, rank)
    # A row of left @ right.T is as long as its coordinates in the orthogonal columns of `right`, and the other way.
    along = ((left * torch.linalg.vector_norm(right, dim=0)).norm(dim=1), right.norm(dim=1))
    return {axis: along[stored_dim(layer, axis)] for axis in axes}


@torch.no_grad()
def factors(weight: Tensor, rank: int) -> Factors:
    """Return the factors of the best approximation of `weight` (rows, columns) of rank r, in 32 bit or wider.

    r is at most the smaller side. The singular vectors along that side are the eigenvectors of the weight's product
    with its own transpose; the values, and the vectors along the other side, are then taken from the weight itself.
    Holds a few squares of the smaller side, and a block of the weight at a time. All NaN for a weight that is not
    finite.
    """
    flat = weight if weight.shape[0] <= weight.shape[1] else weight.T
    rank = min(rank, len(flat))
    square = _square(weight)
    if not torch.isfinite(square).all():
        return Factors(*(square.new_full((side, rank), torch.nan) for side in weight.shape))
    # Ascending; a copy, that the rest need not be held.
    basis = torch.linalg.eigh(square).eigenvectors[:, -rank:].clone()
    along, values, turn = torch.linalg.svd(_transposed_times(flat, basis), full_matrices=False)
    short = basis @ turn.T
    left, right = (short, along) if flat is weight else (along, short)
    return Factors(left, right * values)


def _square(weight: Tensor) -> Tensor:
    """weight @ weight.T or weight.T @ weight, the smaller one."""
    side, kind = min(weight.shape), wide(weight.dtype)
    product = torch.zeros(side, side, dtype=kind, device=weight.device)
    # Blocks are of rows: a wide weight is gone through by columns.
    by_columns = weight.T if weight.shape[0] <= weight.shape[1] else weight
    step = max(1, _BLOCK // side)
    for first in range(0, len(by_columns), step):
        block = by_columns[first : first + step].to(kind)
        product.addmm_(block.T, block)
        # Before the next one is made.
        del block
    return product


def _transposed_times(flat: Tensor, basis: Tensor) -> Tensor:
    """flat.T @ basis, of a matrix that is no higher than wide."""
    product = basis.new_empty(flat.shape[1], basis.shape[1])
    step = max(1, _BLOCK // len(flat))
    for first in range(0, flat.shape[1], step):
        torch.mm(flat[:, first : first + step].to(basis.dtype).T, basis, out=product[first : first + step])
    return product
