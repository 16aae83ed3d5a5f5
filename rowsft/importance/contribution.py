"""taylor_row: the first-order effect of removing a whole row or column, from activations alone."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rowsft.importance.calibration import batch_weights, check_finite, loss_of
from rowsft.importance.gradient import backward, passes
from rowsft.importance.grouping import Pass, groups_of, hooked, layer_input
from rowsft.importance.output_gradient import ShownGradient
from rowsft.importance.reduction import blocks, weight_of, zero_scores
from rowsft.importance.registry import Context, register
from rowsft.importance.untouched import untouched
from rowsft.layers.matrix import LinearLayer, as_matrix
from rowsft.selection.channel import Axis
from rowsft.selection.groups import Scores


@register("taylor_row", needs="gradients")
def taylor_row(layers: Mapping[str, LinearLayer], context: Context, axes: Sequence[Axis]) -> Scores:
    """abs(sum of w_ij g_ij over the row or column), g as in taylor ("multivariable", Li and Bhaskara).

    With Y = X Wᵀ + b over all tokens t, the sum over a row is that of (Y_ti - b_i) dY_ti, over a column that of
    x_tj (dY W)_tj: no gradient of a weight is formed. Y - b is computed again from X in the backward pass: keeping X
    is what a row step does, and layers that read the same X share it. Calls of a layer, and of layers that share a
    weight, are added up before the absolute value is taken.
    """
    weights = batch_weights(context.model, context.calibration)
    signed = {layer.weight: zero_scores(layer, axes) for layer in layers.values()}
    groups = groups_of(layers, context, Pass(accumulators=0, gradients=False))
    for group, ticks in passes(groups, len(weights), context):
        # A weight's layers may lie in two groups: each adds its own calls.
        with untouched(context.model):
            for index, (share, _) in enumerate(zip(weights, ticks, strict=False)):
                _add_batch(group, signed, context, index, share)
    return {name: {axis: total.abs() for axis, total in signed[layer.weight].items()} for name, layer in layers.items()}


def _add_batch(
    group: Mapping[str, LinearLayer],
    signed: dict[Tensor, dict[Axis, Tensor]],
    context: Context,
    index: int,
    share: float,
) -> None:
    anchor = torch.zeros((), requires_grad=True)

    def attach(layer: LinearLayer, args: tuple, kwargs: Mapping, output: Tensor) -> Tensor:
        def take(inputs: Tensor, output_gradient: Tensor) -> None:
            _add_call(layer, inputs, output_gradient, signed[layer.weight], share)

        return ShownGradient.apply(output, layer_input(args, kwargs), anchor, take)

    with hooked(group, attach):
        backward(loss_of(context.model, context.calibration[index], index))
    totals = {
        name: torch.stack([t.sum() for t in signed[layer.weight].values()]).sum() for name, layer in group.items()
    }
    check_finite(totals, index, "sum of weight times gradient")


@torch.no_grad()
def _add_call(
    layer: LinearLayer, inputs: Tensor, output_gradient: Tensor, totals: dict[Axis, Tensor], share: float
) -> None:
    left, right = output_gradient.flatten(0, -2), inputs.flatten(0, -2)
    weight = as_matrix(layer, weight_of(layer))
    if "rows" in totals:
        _add_products(totals["rows"], left, right, weight, share)
    if "columns" in totals:
        _add_products(totals["columns"], right, left, weight.t(), share)


def _add_products(total: Tensor, left: Tensor, right: Tensor, matrix: Tensor, share: float) -> None:
    """total_i += share * sum over t of left_ti (right matrixᵀ)_ti, for left (t, a), right (t, b), matrix (a, b)."""
    for part in blocks(left.t()):
        # A quantised weight is unpacked to a dtype of its own.
        kind = torch.promote_types(right.dtype, matrix.dtype)
        product = (right.to(kind) @ matrix[part].t().to(kind)).to(total.dtype)
        total[part].add_(product.mul_(left[:, part]).sum(dim=0), alpha=share)
