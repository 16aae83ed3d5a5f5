"""Metrics of the mean gradient over all calibration batches, held for a bounded group of layers at a time.

A metric that is nonlinear in the mean gradient cannot be summed up batch by batch: the gradient itself must be
accumulated. To never hold the whole model's, layers are taken in groups and the batches are gone through once for
each group. taylor_row is linear up to its last step and forms no gradient: see `rowsft.importance.contribution`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from rowsft.importance.calibration import batch_weights, check_finite, loss_of
from rowsft.importance.grouping import Pass, groups_of
from rowsft.importance.output_gradient import packed_gradients
from rowsft.importance.reduction import blocks, one_per_weight, sums, weight_of, zero_weight
from rowsft.importance.registry import Context, register
from rowsft.importance.untouched import untouched
from rowsft.layers.matrix import LinearLayer
from rowsft.layers.quantised import is_packed
from rowsft.selection.channel import Axis
from rowsft.selection.groups import Scores


@register("taylor", needs="gradients")
def taylor(layers: Mapping[str, LinearLayer], context: Context, axes: Sequence[Axis]) -> Scores:
    """abs(w_ij g_ij), g the gradient of the mean loss over all labelled tokens of the calibration set.

    First-order Taylor estimate of what removing single weights does to the loss (Molchanov et al., arXiv 1611.06440),
    summed over a row or column.
    """
    return _of_mean_gradient(layers, context, axes, lambda weight, gradient: (weight * gradient).abs())


@register("grad2", needs="gradients")
def grad2(layers: Mapping[str, LinearLayer], context: Context, axes: Sequence[Axis]) -> Scores:
    """g_ij squared, g as in taylor: how fast the loss falls, to first order, by a gradient step on the row."""
    return _of_mean_gradient(layers, context, axes, lambda weight, gradient: gradient.square())


def _of_mean_gradient(
    layers: Mapping[str, LinearLayer],
    context: Context,
    axes: Sequence[Axis],
    term: Callable[[Tensor, Tensor], Tensor],
) -> Scores:
    scores = {}
    for group, gradients in mean_gradients(layers, context):
        for layer in group.values():
            scores[layer.weight] = sums(layer, axes, term, weight_of(layer), gradients.pop(layer.weight))
    return {name: scores[layer.weight] for name, layer in layers.items()}


def mean_gradients(
    layers: Mapping[str, LinearLayer], context: Context
) -> Iterator[tuple[dict[str, LinearLayer], dict[Tensor, Tensor]]]:
    """Yield (group of layers, weight -> mean gradient, laid out as the weight, in 32 bit or wider), group by group.

    The gradient of a packed weight is that of what it stands for, (d_out, d_in).

    Batches count by their labelled tokens (examples, for sequence labels), as the model's own loss does within a
    batch. A weight that layers share comes once, with the gradient of all its uses. Take the gradients out: the next
    group's are summed up while the dictionary lives. The model is in eval mode, and is given back untouched after
    each group. Raises UserError for a loss or gradient that is not finite (naming the batch).
    """
    weights = batch_weights(context.model, context.calibration)
    groups = groups_of(one_per_weight(layers), context, Pass(accumulators=1))
    for group, ticks in passes(groups, len(weights), context):
        with untouched(context.model):
            gradients = _accumulate(group, context, zip(weights, ticks, strict=False))
        yield group, gradients


def passes(
    groups: list[dict[str, LinearLayer]], steps: int, context: Context
) -> Iterator[tuple[dict[str, LinearLayer], Iterator]]:
    """Yield (group, ticks) with `context.progress` counting all steps of all groups; take one tick a step."""
    total = len(groups) * steps
    ticks = iter(context.progress(range(total), total))
    for group in groups:
        yield group, ticks
    # Lets a bar that counts what has been taken come to its end.
    next(ticks, None)


class GradientHooks:
    """Context manager: inside, every backward hands each weight's gradient to take(weight, gradient) and drops it.

    The gradients of a whole group never exist at once. The model must be frozen and its `.grad`s empty.
    `check(batch index)` raises UserError for a gradient of the latest backward that was not finite.
    """

    def __init__(self, group: Mapping[str, LinearLayer], take: Callable[[Tensor, Tensor], None]):
        # By identity: layers that share one weight share its gradient.
        self._names = {layer.weight: name for name, layer in reversed([*group.items()])}
        self._packed = {name: layer for name, layer in group.items() if is_packed(layer.weight)}
        self._take = take
        self._largest: dict[str, Tensor] = {}

    def __enter__(self) -> "GradientHooks":
        self._handles = [
            weight.requires_grad_(True).register_post_accumulate_grad_hook(self._pass_on)
            for weight in self._names
            if not is_packed(weight)
        ]
        self._shown = packed_gradients(self._packed, self._see)
        self._flush = self._shown.__enter__()
        return self

    def __exit__(self, *raised) -> None:
        self._shown.__exit__(*raised)
        for handle in self._handles:
            handle.remove()

    def _pass_on(self, weight: nn.Parameter) -> None:
        gradient, weight.grad = weight.grad, None
        assert gradient is not None, "the hook runs once it has been accumulated"
        self._see(weight, gradient)

    def _see(self, weight: Tensor, gradient: Tensor) -> None:
        self._largest[self._names[weight]] = torch.linalg.vector_norm(gradient, ord=torch.inf)
        self._take(weight, gradient)

    def check(self, index: int) -> None:
        """Raise UserError naming layer and batch for a gradient that was not finite."""
        self._flush()
        check_finite(self._largest, index, "gradient")
        self._largest.clear()


def _accumulate(
    group: Mapping[str, LinearLayer], context: Context, weighted: Iterable[tuple[float, int]]
) -> dict[Tensor, Tensor]:
    """One pass over the calibration batches for one group."""
    gradients = {layer.weight: zero_weight(layer) for layer in group.values()}
    share = 0.0  # of the batch at hand

    def add(weight: Tensor, gradient: Tensor) -> None:
        add_to(gradients[weight], gradient, share)

    with GradientHooks(group, add) as hooks:
        for index, (weight_of_batch, _) in enumerate(weighted):
            share = weight_of_batch
            backward(loss_of(context.model, context.calibration[index], index))
            hooks.check(index)
    return gradients


def backward(loss: Tensor) -> None:
    """loss.backward(), and nothing where the loss depends on no layer of the group: their gradients are 0."""
    if loss.requires_grad:
        loss.backward()


def add_to(total: Tensor, values: Tensor, factor: float) -> None:
    """total += factor * values, block by block: an addition of two dtypes copies the narrow one first."""
    for rows in blocks(values):
        total[rows].add_(values[rows].to(total.dtype), alpha=factor)
