"""change: rows and columns by how far a finished fine-tuning has turned them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rowsft.importance.reduction import blocks, one_per_weight, stored_dim, weight_of, zero_scores
from rowsft.importance.registry import Context, register
from rowsft.layers.matrix import LinearLayer, has_no_data
from rowsft.selection.channel import Axis
from rowsft.selection.groups import Scores


@register("change", needs="changed weights")
def change(layers: Mapping[str, LinearLayer], context: Context, axes: Sequence[Axis]) -> Scores:
    """1 - cos(w, w'), between a row w of the layer's weight and the same row w' of the second checkpoint's.

    So NeFT (Xu et al., arXiv 2403.11621) finds its neurons: the least similar ones are the most important. 0 for a
    row that is as it was, zero rows too; 1 where one of both is zero. Both weights are compared in the coarser one of
    their dtypes, so that no rounding is taken for a change.
    """
    assert context.changed is not None, "score_layers asks for it"
    owners = one_per_weight(layers)
    scores = {
        layer.weight: _of_layer(name, layer, context, axes)
        for name, layer in context.progress(owners.items(), len(owners))
    }
    return {name: scores[layer.weight] for name, layer in layers.items()}


@torch.no_grad()
def _of_layer(name: str, layer: LinearLayer, context: Context, axes: Sequence[Axis]) -> dict[Axis, Tensor]:
    weight = weight_of(layer)
    if has_no_data(weight):
        return zero_scores(layer, axes)
    assert context.changed is not None
    changed = context.changed(name).to(weight.device)
    kind = max(weight.dtype, changed.dtype, key=lambda dtype: torch.finfo(dtype).eps)
    found: dict[Axis, Tensor] = {}
    for axis in axes:
        # What the axis counts becomes rows; a transposed view costs nothing.
        before, after = (each if stored_dim(layer, axis) == 0 else each.T for each in (weight, changed))
        parts = [_turned(before[rows].to(kind).double(), after[rows].to(kind).double()) for rows in blocks(before)]
        found[axis] = torch.cat(parts)
    return found


def _turned(before: Tensor, after: Tensor) -> Tensor:
    """1 - cosine similarity of the rows of two matrices in float64, (rows,).

    As half the squared distance of the rows at length 1: of rows that are nearly alike a fine-tuning's 1 - cos is
    below the rounding of their cos.
    """
    ends = [torch.nn.functional.normalize(each, dim=1, eps=torch.finfo(each.dtype).tiny) for each in (before, after)]
    half = (ends[0] - ends[1]).square_().sum(dim=1) / 2
    one_is_zero = (before == 0).all(dim=1) != (after == 0).all(dim=1)
    return torch.where(one_is_zero, 1, half)
