"""A layer's input shown beside the gradient of its output: what the gradient of its weight is made of.

Packed weights (`rowsft.layers.quantised`) take no gradient of autograd's own; theirs, with respect to what the codes
stand for, is dYᵀ X.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from rowsft.compat.torch import backward_pass
from rowsft.importance.grouping import hooked, layer_input
from rowsft.layers.matrix import LinearLayer


class ShownGradient(torch.autograd.Function):
    """The layer's output unchanged; its gradient is shown to `take` together with the layer's input.

    `anchor` makes the graph begin here: no parameter requires a gradient.
    """

    @staticmethod
    def forward(ctx, output: Tensor, inputs: Tensor, anchor: Tensor, take: Callable[[Tensor, Tensor], None]) -> Tensor:
        ctx.save_for_backward(inputs)
        ctx.take = take
        # A view made here would forbid in-place operations on the layer's output.
        return output.detach()

    @staticmethod
    def backward(ctx, output_gradient: Tensor):
        ctx.take(ctx.saved_tensors[0], output_gradient)
        return output_gradient, None, None, None


@contextmanager
def packed_gradients(
    layers: Mapping[str, LinearLayer], take: Callable[[Tensor, Tensor], None]
) -> Iterator[Callable[[], None]]:
    """Inside, every backward hands the gradients (d_out, d_in) of quantised layers to take(weight, gradient).

    Each comes once, when all calls of its layer have gone through; the function that the context gives, called after a
    backward, hands on what calls without a part in the loss have held up.
    """
    waiting: dict[Tensor, int] = {}
    sums: dict[Tensor, Tensor] = {}
    anchor = torch.zeros((), requires_grad=True)

    def hand_on(weight: Tensor) -> None:
        waiting.pop(weight, None)
        take(weight, sums.pop(weight))

    def attach(layer: LinearLayer, args: tuple, kwargs: Mapping, output: Tensor) -> Tensor:
        weight = layer.weight
        if not torch.is_grad_enabled():
            return output
        if backward_pass() == -1:
            # Otherwise a checkpoint recomputes a call that has been counted.
            waiting[weight] = waiting.get(weight, 0) + 1

        def add(inputs: Tensor, output_gradient: Tensor) -> None:
            left, right = output_gradient.flatten(0, -2), inputs.flatten(0, -2)
            with torch.no_grad():
                gradient = left.t() @ right.to(left.dtype)
                sums[weight] = sums[weight] + gradient if weight in sums else gradient
            waiting[weight] -= 1
            if not waiting[weight]:
                hand_on(weight)

        return ShownGradient.apply(output, layer_input(args, kwargs), anchor, add)

    def flush() -> None:
        for weight in list(sums):
            hand_on(weight)
        waiting.clear()

    with hooked(layers, attach):
        yield flush
