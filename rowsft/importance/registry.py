"""The registry of importance metrics: how one is added, found by name, and run on the layers of a model."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from rowsft.errors import UserError
from rowsft.importance.calibration import Calibration, Rehearsal
from rowsft.importance.reduction import Axis, Scores, sums, weight_of
from rowsft.importance.seeding import layer_generator
from rowsft.layers.quantised import keep_layout
from rowsft.selection.targets import layer_shape

Needs = Literal["nothing", "weights", "activations", "losses", "gradients"]


def no_progress(items: Iterable, total: int | None = None) -> Iterable:
    """The progress wrapper that shows nothing."""
    return items


def names() -> list[str]:
    """The registered metrics, sorted."""
    return sorted(_METRICS)


@dataclass(frozen=True)
class Context:
    """What a metric may use besides the layers themselves.

    calibration: batches (dicts of tensors that model.forward accepts, with labels), from training data only.
    seed: of the metrics that draw numbers. group_bytes: see `rowsft.importance.grouping`; None picks a default.
    draws: perturbations that zo_taylor averages over. progress: wraps an iterable of batches, called with
    (items, total). step_bytes: what the step to come holds besides the network, its trained weights and their state.
    """

    model: nn.Module
    calibration: Sequence[dict] = ()
    seed: int = 0
    group_bytes: int | None = None
    draws: int = 256
    progress: Callable[..., Iterable] = no_progress
    step_bytes: int = 0


@dataclass(frozen=True)
class Metric:
    """A metric by its full name. function: (layers {full name: module}, context, axes) -> Scores."""

    name: str
    needs: Needs
    function: Callable[[dict[str, nn.Module], Context, Sequence[Axis]], Scores]

    @property
    def needs_data(self) -> bool:
        """Whether scoring reads calibration batches."""
        return self.needs not in ("nothing", "weights")


_METRICS: dict[str, Metric] = {}
_COMPOSITIONS: dict[str, tuple[str, Callable[[str], Metric]]] = {}


def register(name: str, needs: Needs) -> Callable[[Callable], Callable]:
    """Make a function an importance metric under `name`; the larger a row's score, the sooner it is chosen.

    needs="nothing": function(count, generator) -> (count,); the generator belongs to one layer and one axis.
    needs="weights": function(block of a weight) -> an elementwise quantity of the same shape, summed along each axis.
    Otherwise function(layers, context, axes) -> Scores, with layers {full name: module}: "activations" for forward
    passes over the batches, "losses" for forward passes with labels, "gradients" for backward passes too.
    """
    adapters = {"nothing": _drawn, "weights": _of_weights}

    def add(function: Callable) -> Callable:
        if name in _METRICS:
            raise ValueError(f"importance metric {name} is registered twice")
        _METRICS[name] = Metric(name, needs, adapters.get(needs, lambda plain: plain)(function))
        return function

    return add


def register_composition(name: str, form: str) -> Callable[[Callable], Callable]:
    """Make a function (text between the brackets) -> Metric the meaning of `name(...)`; `form` explains the text."""

    def add(function: Callable[[str], Metric]) -> Callable[[str], Metric]:
        _COMPOSITIONS[name] = (form, function)
        return function

    return add


def metric(name: str) -> Metric:
    """The metric called `name`, which may be composed, as in `lowest(labelwise(taylor, max))`.

    Raises UserError that lists the right names.
    """
    composed = re.fullmatch(r"\s*(\w+)\((.+)\)\s*", name)
    if composed and composed[1] in _COMPOSITIONS:
        return _COMPOSITIONS[composed[1]][1](composed[2])
    if name.strip() not in _METRICS:
        forms = " or ".join(f"{outer}({form})" for outer, (form, _) in sorted(_COMPOSITIONS.items(), reverse=True))
        raise UserError(f"importance={name}: unknown metric; use one of {', '.join(sorted(_METRICS))}, {forms}")
    return _METRICS[name.strip()]


@register_composition("lowest", "metric")
def lowest(inner_name: str) -> Metric:
    """The metric with its sign turned: the control that shows whether importance matters."""
    inner = metric(inner_name)

    def turned(layers: dict[str, nn.Module], context: Context, axes: Sequence[Axis]) -> Scores:
        scores = inner.function(layers, context, axes)
        return {name: {axis: -score for axis, score in of_layer.items()} for name, of_layer in scores.items()}

    return Metric(f"lowest({inner.name})", inner.needs, turned)


def score_layers(
    layers: dict[str, nn.Module], importance: str, context: Context, axes: Sequence[Axis] = ("out",)
) -> dict[str, dict[str, Tensor]]:
    """Score every row (axis "out") and column (axis "in") of every layer; one pass over the data serves both.

    Returns axis -> full layer name -> float32 tensor on the CPU, (d_out,) for "out" and (d_in,) for "in", in the order
    of `layers`. A `Calibration` with a cache is asked first and given the result. Raises UserError for an unknown
    metric, a metric that needs batches and got none, and losses, gradients or scores that are not finite.
    """
    chosen = metric(importance)
    keep_layout(context.model)
    if chosen.needs_data and not context.calibration:
        free = sorted(name for name, known in _METRICS.items() if not known.needs_data)
        raise UserError(
            f"importance={importance} needs training batches and calibration is empty; give calibration=[...] to "
            f"rowsft.score or rowsft.attach, or use a metric that needs none ({', '.join(free)})"
        )
    if isinstance(context.calibration, Rehearsal):
        context = replace(context, draws=min(context.draws, 2))
    if chosen.needs_data and isinstance(context.calibration, Calibration):
        batches, asked = context.calibration, _required(layers, chosen, context, axes)
        return batches.cached(asked, lambda: _computed(layers, chosen, context, axes))
    return _computed(layers, chosen, context, axes)


def _computed(
    layers: dict[str, nn.Module], chosen: Metric, context: Context, axes: Sequence[Axis]
) -> dict[str, dict[str, Tensor]]:
    scores = chosen.function(layers, context, axes)
    for name, of_layer in scores.items():
        for axis, score in of_layer.items():
            if not score.is_meta and (bad := int((~torch.isfinite(score)).sum())):
                raise UserError(
                    f"importance={chosen.name} of layer {name} is not finite in {bad} of {len(score)} "
                    f"{'rows' if axis == 'out' else 'columns'}; check the model's weights or load it in float32"
                )
    return {axis: {name: _on_cpu(scores[name][axis].float()) for name in layers} for axis in axes}


def _on_cpu(score: Tensor) -> Tensor:
    return score if score.is_meta else score.cpu()


def _required(layers: dict[str, nn.Module], chosen: Metric, context: Context, axes: Sequence[Axis]) -> dict:
    """What determines scores besides model and batches. How layers are grouped does not."""
    return {
        "metric": chosen.name,
        "axes": sorted(axes),
        "seed": context.seed,
        "draws": context.draws,
        "layers": sorted(layers),
    }


def _drawn(function: Callable[[int, torch.Generator], Tensor]) -> Callable:
    def score(layers: dict[str, nn.Module], context: Context, axes: Sequence[Axis]) -> Scores:
        return {name: {axis: _draw(name, layer, context.seed, axis) for axis in axes} for name, layer in layers.items()}

    def _draw(name: str, layer: nn.Module, seed: int, axis: Axis) -> Tensor:
        count = layer_shape(layer)[0 if axis == "out" else 1]
        return function(count, layer_generator(seed, name if axis == "out" else f"{name} columns"))

    return score


def _of_weights(term: Callable[[Tensor], Tensor]) -> Callable:
    def score(layers: dict[str, nn.Module], context: Context, axes: Sequence[Axis]) -> Scores:
        return {name: sums(layer, axes, term, weight_of(layer)) for name, layer in layers.items()}

    return score
