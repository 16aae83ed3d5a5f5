"""The registry of importance metrics, and the two ways to call one: on a weight, or on the layers of a model."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from rowsft.errors import UserError
from rowsft.importance.seeding import layer_generator
from rowsft.selection import rows_of

Needs = Literal["nothing", "weights", "gradients"]


def no_progress(items: Iterable, total: int | None = None) -> Iterable:
    """The progress wrapper that shows nothing."""
    return items


@dataclass(frozen=True)
class Context:
    """What a metric may use besides the layers themselves.

    calibration: batches (dicts of tensors that model.forward accepts, with labels), from training data only.
    seed: of the metrics that draw numbers. group_bytes: see `rowsft.importance.gradient`; None picks a default.
    progress: wraps an iterable of batches, called with (items, total).
    """

    model: nn.Module
    calibration: Sequence[dict] = ()
    seed: int = 0
    group_bytes: int | None = None
    draws: int = 256
    progress: Callable[..., Iterable] = no_progress


@dataclass(frozen=True)
class Metric:
    """A registered metric. `function` takes what `register` says for its `needs`."""

    name: str
    needs: Needs
    function: Callable

    @property
    def needs_data(self) -> bool:
        """Whether scoring reads calibration batches."""
        return self.needs not in ("nothing", "weights")


_METRICS: dict[str, Metric] = {}


def register(name: str, needs: Needs) -> Callable[[Callable], Callable]:
    """Make a function an importance metric under `name`; the larger a row's score, the sooner it is chosen.

    needs="nothing" or "weights": function(weight (d_out, d_in), generator) -> (d_out,), called layer by layer;
    `generator` is the layer's own, so the order of layers does not matter. needs="gradients": function(layers,
    context) -> {layer name: (d_out,)}, with layers {full name: module}.
    """

    def add(function: Callable) -> Callable:
        if name in _METRICS:
            raise ValueError(f"importance metric {name} is registered twice")
        _METRICS[name] = Metric(name, needs, function)
        return function

    return add


def metric(name: str) -> Metric:
    """The metric called `name`; `lowest(metric)` turns its sign: the control that shows whether it matters.

    Raises UserError that lists the right names.
    """
    if turned := re.fullmatch(r"lowest\((.+)\)", name):
        return _lowest(name, metric(turned[1]))
    if name not in _METRICS:
        raise UserError(
            f"importance={name}: unknown metric; use one of {', '.join(sorted(_METRICS))}, or lowest(metric)"
        )
    return _METRICS[name]


def _lowest(name: str, inner: Metric) -> Metric:
    def turned(*arguments) -> Tensor | dict[str, Tensor]:
        scores = inner.function(*arguments)
        return {layer: -score for layer, score in scores.items()} if isinstance(scores, dict) else -scores

    return Metric(name, inner.needs, turned)


@torch.no_grad()
def score_weights(weight: Tensor, importance: str, generator: torch.Generator) -> Tensor:
    """Scores (d_out,), float32, of the rows of `weight` (d_out, d_in) by a metric that needs no data.

    Raises UserError for an unknown metric and for one that needs data.
    """
    chosen = metric(importance)
    if chosen.needs == "gradients":
        raise UserError(
            f"importance={importance} needs training batches: use rowsft.attach(model, config, calibration=batches), "
            "or a metric that needs none (random, l1, l2)"
        )
    return chosen.function(weight, generator).float()


def score_layers(
    layers: dict[str, nn.Module], importance: str, context: Context, axes: Sequence[str] = ("out",)
) -> dict[str, dict[str, Tensor]]:
    """Scores by axis ("out": rows, "in": columns) and full layer name: float32 tensors on the CPU.

    Raises UserError for an unknown metric, a metric that needs batches and got none, and scores that are not finite.
    """
    return {axis: _score_axis(layers, importance, context, axis) for axis in axes}


def _score_axis(layers: dict[str, nn.Module], importance: str, context: Context, axis: str) -> dict[str, Tensor]:
    chosen = metric(importance)
    if chosen.needs == "gradients":
        scores = chosen.function(layers, context)
    else:
        scores = {
            name: score_weights(_along(axis, layer), importance, layer_generator(context.seed, name))
            for name, layer in layers.items()
        }
    for name, score in scores.items():
        if not torch.isfinite(score).all():
            raise UserError(
                f"importance={importance} of layer {name} is not finite in {int((~torch.isfinite(score)).sum())} of "
                f"{len(score)} rows; check the model's weights or load it in float32"
            )
    return {name: score.float().cpu() for name, score in scores.items()}


def _along(axis: str, layer: nn.Module) -> Tensor:
    weight = rows_of(layer, layer.weight)
    return weight if axis == "out" else weight.T
