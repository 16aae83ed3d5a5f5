"""wanda: weights by the size of the inputs that they meet."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rowsft.batch import device_of, on_device
from rowsft.importance.calibration import check_finite
from rowsft.importance.grouping import hooked, layer_input
from rowsft.importance.padding import TokenMasks
from rowsft.importance.reduction import stored_dim, sums, weight_of, zero_scores
from rowsft.importance.registry import Context, register
from rowsft.importance.untouched import untouched
from rowsft.layers.matrix import LinearLayer
from rowsft.selection.channel import Axis
from rowsft.selection.groups import Scores


@register("wanda", needs="activations")
def wanda(layers: Mapping[str, LinearLayer], context: Context, axes: Sequence[Axis]) -> Scores:
    """abs(w_ij) times the 2-norm of input feature j over all calibration tokens (Sun et al., arXiv 2306.11695, eq. 1).

    Padding is left out (see `rowsft.importance.padding`). Needs no labels. A layer that no batch runs scores 0.
    """
    norms = input_norms(layers, context)
    return {name: _of_layer(layer, axes, norms[name]) for name, layer in layers.items()}


def input_norms(layers: Mapping[str, LinearLayer], context: Context) -> dict[str, Tensor]:
    """Return layer name -> 2-norm of each of its input features (d_in,) over all tokens, in 32 bit or wider."""
    names = {layer: name for name, layer in layers.items()}
    squares = {name: zero_scores(layer, ("columns",))["columns"] for name, layer in layers.items()}
    device, total = device_of(context.model), len(context.calibration)
    with untouched(context.model), torch.no_grad(), TokenMasks(context.model) as masks:

        def add(layer: LinearLayer, args: tuple, kwargs: Mapping, output: Tensor) -> None:
            inputs, into = layer_input(args, kwargs), squares[names[layer]]
            mask = masks.of(layer, inputs)
            tokens = inputs.flatten(0, -2) if mask is None else inputs[mask]
            into += torch.linalg.vector_norm(tokens, dim=0, dtype=into.dtype).square_()

        with hooked(layers, add):
            for index, batch in enumerate(context.progress(context.calibration, total)):
                moved = on_device(batch, device)
                masks.start(moved)
                context.model(**moved)
                check_finite({name: square.max() for name, square in squares.items()}, index, "input")
    return {name: square.sqrt() for name, square in squares.items()}


def _of_layer(layer: LinearLayer, axes: Sequence[Axis], norm: Tensor) -> dict[Axis, Tensor]:
    weight = weight_of(layer)
    scale = norm.unsqueeze(1 - stored_dim(layer, "columns")).expand_as(weight)
    return sums(layer, axes, lambda block, scales: block.abs() * scales, weight, scale)
