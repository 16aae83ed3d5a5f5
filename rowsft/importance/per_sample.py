"""Metrics of per-sample gradients: the calibration is run sample by sample, each with its own mean loss.

A square of a batch's gradient is no mean of the samples' squares, so no batch can stand in for its samples.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from rowsft.batch import largest_batch
from rowsft.importance.calibration import Rehearsal, labelled, loss_of, select_samples
from rowsft.importance.gradient import GradientHooks, add_to, backward, passes
from rowsft.importance.grouping import Pass, groups_of
from rowsft.importance.reduction import blocks, one_per_weight, sums, weight_of, zero_scores, zero_weight
from rowsft.importance.registry import Context, register
from rowsft.importance.untouched import untouched
from rowsft.layers.matrix import LinearLayer
from rowsft.selection.channel import Axis
from rowsft.selection.groups import Scores


@register("fisher", needs="gradients")
def fisher(layers: Mapping[str, LinearLayer], context: Context, axes: Sequence[Axis]) -> Scores:
    """w_ij² E[g_ij²], g the gradient of one sample's loss (the mean over its labelled tokens), E the mean over samples.

    The diagonal of the empirical Fisher information, weighed by the square of what removal changes the weight by (Theis
    et al., arXiv 1801.05787, without the 1/2). Summed up sample by sample: nothing of a weight's size is kept.
    """
    samples = _samples(context)
    scores = {layer.weight: zero_scores(layer, axes) for layer in layers.values()}
    owners = {layer.weight: layer for layer in layers.values()}

    def add(weight: Tensor, gradient: Tensor, sample: "Sample") -> None:
        squares = sums(owners[weight], axes, lambda w, g: (w * g).square_(), weight_of(owners[weight]), gradient)
        for axis, square in squares.items():
            scores[weight][axis].add_(square, alpha=sample.share)

    groups = _groups(layers, context, accumulators=0)
    for group, ticks in passes(groups, len(samples), context):
        _run(group, context, samples, ticks, add)
    return {name: scores[layer.weight] for name, layer in layers.items()}


@register("taylor2", needs="gradients")
def taylor2(layers: Mapping[str, LinearLayer], context: Context, axes: Sequence[Axis]) -> Scores:
    """abs(w_ij g_ij - ½ w_ij² E[g_ij²]), with taylor's mean gradient g (by labelled tokens) and fisher's E.

    Second-order Taylor estimate of what removing single weights does to the loss, the diagonal of the empirical Fisher
    information in the Hessian's place.
    """
    samples = _samples(context)
    scores = {}
    for group, ticks in passes(_groups(layers, context, accumulators=2), len(samples), context):
        moments = {layer.weight: (zero_weight(layer), zero_weight(layer)) for layer in group.values()}

        def add(weight: Tensor, gradient: Tensor, sample: "Sample", moments: dict = moments) -> None:
            first, second = moments[weight]
            add_to(first, gradient, sample.token_share)
            for rows in blocks(gradient):
                second[rows].add_(gradient[rows].to(second.dtype).square_(), alpha=sample.share)

        _run(group, context, samples, ticks, add)
        for layer in group.values():
            scores[layer.weight] = sums(layer, axes, _second_order, weight_of(layer), *moments.pop(layer.weight))
    return {name: scores[layer.weight] for name, layer in layers.items()}


@dataclass(frozen=True)
class Sample:
    """A calibration sample: its batch and row, its share among all samples and that of its labelled tokens."""

    batch: int
    row: int
    share: float
    token_share: float


def _samples(context: Context) -> list[Sample]:
    """Every sample with a labelled token; one without has no loss, and is skipped."""
    counts = [
        (index, row, count)
        for index, batch in enumerate(context.calibration)
        for row, count in enumerate(labelled(context.model, batch, index))
        if count
    ]
    if isinstance(context.calibration, Rehearsal):
        counts = counts[:2]
    tokens = sum(count for _, _, count in counts)
    return [Sample(index, row, 1 / len(counts), count / tokens) for index, row, count in counts]


def _groups(layers: Mapping[str, LinearLayer], context: Context, accumulators: int) -> list[dict[str, LinearLayer]]:
    share = 1 / len(largest_batch(context.calibration)["labels"])
    return groups_of(one_per_weight(layers), context, Pass(accumulators, share=share))


def _run(
    group: Mapping[str, LinearLayer],
    context: Context,
    samples: list[Sample],
    ticks: Iterator,
    take: Callable[[Tensor, Tensor, Sample], None],
) -> None:
    """Call take(weight, gradient, sample) for every weight of the group and every sample."""
    current: Sample

    def pass_on(weight: Tensor, gradient: Tensor) -> None:
        take(weight, gradient, current)

    with untouched(context.model), GradientHooks(group, pass_on) as hooks:
        for sample, _ in zip(samples, ticks, strict=False):
            current = sample
            batch = select_samples(context.calibration[sample.batch], slice(sample.row, sample.row + 1))
            backward(loss_of(context.model, batch, sample.batch))
            hooks.check(sample.batch)


def _second_order(weight: Tensor, mean: Tensor, square: Tensor) -> Tensor:
    return (weight * mean - 0.5 * weight.square() * square).abs()
