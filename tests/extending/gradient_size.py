"""An importance metric of one's own: `method.importance=gradient_size.gradient_size(power=2)`."""

from collections.abc import Mapping, Sequence

from rowsft.importance import Context, register
from rowsft.importance.gradient import mean_gradients
from rowsft.importance.reduction import sums
from rowsft.layers.matrix import LinearLayer
from rowsft.selection.channel import Axis
from rowsft.selection.groups import Scores


@register("gradient_size", needs="gradients")
def gradient_size(
    layers: Mapping[str, LinearLayer], context: Context, axes: Sequence[Axis], *, power: float = 1.0
) -> Scores:
    """abs(g_ij) to the power `power`, g the gradient of the mean loss, summed over a row or column."""
    scores = {}
    for group, gradients in mean_gradients(layers, context):
        for layer in group.values():
            scores[layer.weight] = sums(layer, axes, lambda g: g.abs() ** power, gradients.pop(layer.weight))
    return {name: scores[layer.weight] for name, layer in layers.items()}
