"""Label-wise scores: a metric class by class, so that a rare or easy class is heard, then one number of them all."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rowsft.batch import IGNORED
from rowsft.errors import UserError
from rowsft.importance.calibration import Rehearsal, select_samples
from rowsft.importance.grouping import kept_bytes, kept_inputs
from rowsft.importance.reduction import one_per_weight
from rowsft.importance.registry import Context, Metric, metric, register_composition
from rowsft.layers.matrix import LinearLayer
from rowsft.selection.channel import Axis
from rowsft.selection.groups import Scores


def quantiles_mean(first: int, last: int) -> Callable[[Tensor], Tensor]:
    """Return an aggregator: the mean over classes' quantiles first/10, (first+1)/10 ... last/10, interpolated."""

    def aggregate(scores: Tensor) -> Tensor:
        ordered = scores.sort(dim=0).values
        # torch.quantile refuses more than 16 million numbers: a thousand classes of a wide layer.
        places = torch.arange(first, last + 1, device=scores.device, dtype=scores.dtype) / 10 * (len(scores) - 1)
        below = places.floor().long()
        above = places.ceil().long()
        return torch.lerp(ordered[below], ordered[above], (places - below).unsqueeze(1)).mean(dim=0)

    return aggregate


def top5_mean(scores: Tensor) -> Tensor:
    """Return the mean of the five largest classes, of all where there are fewer."""
    return scores.topk(min(5, len(scores)), dim=0).values.mean(dim=0)


#: Scores per class (classes, rows) -> (rows,).
AGGREGATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda scores: scores.mean(dim=0),
    "max": lambda scores: scores.amax(dim=0),
    "upper_quantile_mean": quantiles_mean(5, 10),
    "quantile_mean": quantiles_mean(0, 10),
    "top5_mean": top5_mean,
    "top5_and_mean": lambda scores: (top5_mean(scores) + scores.mean(dim=0)) / 2,
}


@register_composition("labelwise", "metric, aggregator")
def labelwise(form: str) -> Metric:
    """Return `labelwise(metric, aggregator)`: the metric on each class's samples alone, aggregated over classes.

    Raises UserError for an unknown metric or aggregator, and for a metric that reads no calibration samples.
    """
    inner_name, _, aggregator = (part.strip() for part in form.rpartition(","))
    if aggregator not in AGGREGATORS or not inner_name:
        raise UserError(
            f"importance=labelwise({form}): expected labelwise(metric, aggregator) with an aggregator out of "
            f"{', '.join(AGGREGATORS)}"
        )
    inner = metric(inner_name)
    if not inner.needs_data:
        raise UserError(
            f"importance=labelwise({form}): {inner.name} reads no calibration samples, so it is the same for every "
            f"class; use {inner.name} itself, or a metric that reads them, such as taylor"
        )

    def score(layers: Mapping[str, LinearLayer], context: Context, axes: Sequence[Axis]) -> Scores:
        classes = batches_of_classes(context.calibration)
        kind = Rehearsal if isinstance(context.calibration, Rehearsal) else list
        # Room is what a step on a whole batch leaves, not one on a batch of a single class.
        if inner.needs == "gradients" and context.group_bytes is None:
            room = kept_bytes(kept_inputs(one_per_weight(layers), context))
            context = replace(context, group_bytes=room)
        of_classes = [
            inner.function(layers, replace(context, calibration=kind(batches)), axes) for batches in classes.values()
        ]
        return {
            name: {axis: AGGREGATORS[aggregator](torch.stack([s[name][axis] for s in of_classes])) for axis in axes}
            for name in layers
        }

    return replace(inner, name=f"labelwise({inner.name}, {aggregator})", function=score)


def batches_of_classes(calibration: Sequence[Mapping]) -> dict[int, list[dict]]:
    """Return class -> the batches cut down to its samples, classes ascending; unlabelled samples (-100) belong to none.

    Raises UserError naming the batch where samples have no integer label of their own.
    """
    classes: dict[int, list[dict]] = {}
    for index, batch in enumerate(calibration):
        labels = batch.get("labels")
        if labels is None or labels.dim() != 1 or labels.is_floating_point():
            labelled = "no labels" if labels is None else f"labels of shape {tuple(labels.shape)} and {labels.dtype}"
            raise UserError(
                f"calibration batch {index} has {labelled}; label-wise importance expects one integer class per "
                "sample, labels of shape (batch,); use the metric without labelwise(...)"
            )
        for label in sorted(set(labels.tolist()) - {IGNORED}):
            samples = (labels == label).nonzero().flatten()
            classes.setdefault(label, []).append(select_samples(batch, samples))
    if not classes:
        raise UserError("calibration has no labelled sample; label-wise importance expects an integer class per sample")
    return dict(sorted(classes.items()))
