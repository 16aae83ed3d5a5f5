"""The registry of importance metrics: how one is added, found by name, and run on the layers of a model."""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from rowsft.errors import UserError, shortened
from rowsft.importance.calibration import Calibration
from rowsft.importance.reduction import sums, weight_of
from rowsft.importance.seeding import layer_generator
from rowsft.layers.matrix import LinearLayer, layer_shape
from rowsft.layers.quantised import keep_layout
from rowsft.selection.channel import AXES, Axis
from rowsft.selection.groups import Scores

Needs = Literal["nothing", "weights", "whole weights", "changed weights", "activations", "losses", "gradients"]
_WITHOUT_DATA = ("nothing", "weights", "whole weights", "changed weights")
_NAME = re.compile(r"\s*([\w.]+)\s*(?:\((.+)\))?\s*", re.DOTALL)
#: Types that a metric's parameters may have -> (how text is read, what errors call it).
_TYPES: dict[type, tuple[Callable[[str], object], str]] = {
    int: (int, "a whole number"),
    float: (float, "a number"),
    bool: ({"true": True, "false": False}.__getitem__, "true or false"),
    str: (str, "text"),
}


def no_progress(items: Iterable, total: int | None = None) -> Iterable:
    """The progress wrapper that shows nothing."""
    return items


def names() -> list[str]:
    """Return the registered metrics, sorted."""
    return sorted(_METRICS)


@dataclass(frozen=True)
class Context:
    """What a metric may use besides the layers themselves and its own parameters.

    calibration: batches (dicts of tensors that model.forward accepts, with labels), from training data only.
    seed: of the metrics that draw numbers. group_bytes: see `rowsft.importance.grouping`; None picks a default.
    progress: wraps an iterable of batches, called with (items, total). step_bytes: what the step to come holds besides
    the network, its trained weights and their state. changed: full layer name -> the weight that the layer has in a
    second checkpoint, stored as the layer stores its own, of any floating dtype, on the CPU.
    """

    model: nn.Module
    calibration: Sequence[Mapping] = ()
    seed: int = 0
    group_bytes: int | None = None
    progress: Callable[..., Iterable] = no_progress
    step_bytes: int = 0
    changed: Callable[[str], Tensor] | None = None


@dataclass(frozen=True)
class Metric:
    """A metric with its parameters set.

    name: in full, with the parameters that differ from their defaults. function: (layers, context, axes) -> Scores.
    is_ours: whether it is a part of this package, so that its scores may be kept: other code may change under its name.
    """

    name: str
    needs: Needs
    function: Callable[[Mapping[str, LinearLayer], Context, Sequence[Axis]], Scores]
    is_ours: bool = True

    @property
    def needs_data(self) -> bool:
        """Whether scoring reads calibration batches."""
        return self.needs not in _WITHOUT_DATA


@dataclass(frozen=True)
class _Registered:
    needs: Needs
    function: Callable[..., Scores]
    parameters: Mapping[str, inspect.Parameter]
    is_ours: bool


_METRICS: dict[str, _Registered] = {}
_COMPOSITIONS: dict[str, tuple[str, Callable[[str], Metric]]] = {}


def register(name: str, needs: Needs) -> Callable[[Callable], Callable]:
    """Make a function an importance metric under `name`; the larger a row's score, the sooner it is chosen.

    needs="nothing": function(count, generator) -> (count,); the generator belongs to one layer and one axis.
    needs="weights": function(block of a weight) -> an elementwise quantity of the same shape, summed along each axis.
    Otherwise function(layers, context, axes) -> Scores: "whole weights" for weights alone, "changed weights" for those
    and `context.changed`, "activations" for forward passes over the batches, "losses" for forward passes with labels,
    "gradients" for backward passes too.

    The function's keyword-only arguments are the metric's parameters, as in `importance=zo_taylor(draws=64)`; each has
    a type (int, float, bool or str) and a default. Outside this package the metric is called module.name, and its
    module is imported when the name is met. Raises ValueError for unknown needs, a name that is taken and a parameter
    without a type.
    """
    if needs not in get_args(Needs):
        raise ValueError(f"importance metric {name}: needs={needs}: expected {', '.join(get_args(Needs))}")
    adapters: dict[str, Callable[[Callable], Callable]] = {"nothing": _drawn, "weights": _of_weights}

    def add(function: Callable) -> Callable:
        is_ours = function.__module__.startswith(f"{__package__}.")
        full_name = name if is_ours else f"{function.__module__}.{name}"
        if is_ours and name in _METRICS:
            raise ValueError(f"importance metric {name} is registered twice")
        arguments = inspect.signature(function, eval_str=True).parameters
        parameters = {key: each for key, each in arguments.items() if each.kind is each.KEYWORD_ONLY}
        for key, each in parameters.items():
            if each.annotation not in _TYPES or each.default is each.empty:
                raise ValueError(f"importance metric {name}: {key} must have a default and be int, float, bool or str")
        scoring = adapters[needs](function) if needs in adapters else function
        _METRICS[full_name] = _Registered(needs, scoring, parameters, is_ours)
        return function

    return add


def register_composition(name: str, form: str) -> Callable[[Callable], Callable]:
    """Make a function (text between the brackets) -> Metric the meaning of `name(...)`; `form` explains the text."""

    def add(function: Callable[[str], Metric]) -> Callable[[str], Metric]:
        _COMPOSITIONS[name] = (form, function)
        return function

    return add


def metric(text: str) -> Metric:
    """Return the metric that `text` names.

    It may have parameters, zo_taylor(draws=64), be composed, lowest(labelwise(taylor, max)), and come from a module of
    one's own, mymodule.mymetric. Raises UserError that lists the right names, and for parameters it does not take.
    """
    match = _NAME.fullmatch(text)
    name, inner = match.groups() if match else (text, None)
    if inner is not None and name in _COMPOSITIONS:
        return _COMPOSITIONS[name][1](inner)
    if match and "." in name and name not in _METRICS:
        _import_for(name)
    if name not in _METRICS:
        forms = " or ".join(f"{outer}({form})" for outer, (form, _) in sorted(_COMPOSITIONS.items(), reverse=True))
        raise UserError(f"importance={text}: unknown metric; use one of {', '.join(names())}, {forms}")
    registered = _METRICS[name]
    values = _parameters(text, registered.parameters, inner)
    changed = [f"{key}={_shown(value)}" for key, value in values.items() if value != registered.parameters[key].default]
    full_name = f"{name}({', '.join(changed)})" if changed else name
    return Metric(full_name, registered.needs, partial(registered.function, **values), registered.is_ours)


@register_composition("lowest", "metric")
def lowest(inner_name: str) -> Metric:
    """Return the metric with its sign turned: the control that shows whether importance matters."""
    inner = metric(inner_name)

    def turned(layers: Mapping[str, LinearLayer], context: Context, axes: Sequence[Axis]) -> Scores:
        scores = inner.function(layers, context, axes)
        return {name: {axis: -score for axis, score in of_layer.items()} for name, of_layer in scores.items()}

    return replace(inner, name=f"lowest({inner.name})", function=turned)


def score_layers(
    layers: Mapping[str, LinearLayer], importance: str, context: Context, axes: Sequence[Axis] = ("rows",)
) -> Scores:
    """Score the rows and columns (`axes`) of every layer; one pass over the data serves both.

    Returns full layer name -> axis -> float32 tensor on the CPU, "rows" (d_out,) and "columns" (d_in,), in the order of
    `layers`. A `Calibration` with a cache is asked first and given the result. Raises UserError for an unknown metric,
    a metric that needs batches and got none, and losses, gradients or scores that are not finite.
    """
    chosen = metric(importance)
    keep_layout(context.model)
    if chosen.needs == "changed weights" and context.changed is None:
        raise UserError(
            f"importance={importance} compares the model with what a fine-tuning has made of it, and no second "
            "checkpoint is given; name it with method.changed in a run of the suite, or use another metric"
        )
    if chosen.needs_data and not context.calibration:
        free = sorted(name for name in names() if metric(name).needs in ("nothing", "weights", "whole weights"))
        raise UserError(
            f"importance={importance} needs training batches and calibration is empty; give calibration=[...] to "
            f"rowsft.score or rowsft.attach, or use a metric that needs none ({', '.join(free)})"
        )
    if chosen.needs_data and chosen.is_ours and isinstance(context.calibration, Calibration):
        # What determines scores besides model and batches. How layers are grouped does not.
        key = {"metric": chosen.name, "axes": sorted(axes), "seed": context.seed, "layers": sorted(layers)}
        return context.calibration.cached(key, lambda: _computed(layers, chosen, context, axes))
    return _computed(layers, chosen, context, axes)


def _computed(layers: Mapping[str, LinearLayer], chosen: Metric, context: Context, axes: Sequence[Axis]) -> Scores:
    scores = chosen.function(layers, context, axes)

    def score_of(name: str, axis: Axis) -> Tensor:
        try:
            return scores[name][axis]
        except (KeyError, TypeError):
            raise UserError(
                f"importance={chosen.name}: gave no {axis} of layer {name}; expected {{layer: {{axis: scores}}}}"
            ) from None

    return {
        name: {axis: _checked(chosen.name, name, layer, axis, score_of(name, axis)) for axis in axes}
        for name, layer in layers.items()
    }


def _checked(metric_name: str, name: str, layer: LinearLayer, axis: Axis, score: Tensor) -> Tensor:
    """Scores of a layer along one axis, in 32 bit on the CPU; on the meta device where they have no data."""
    expected = (layer_shape(layer)[AXES.index(axis)],)
    if score.shape != expected:
        raise UserError(
            f"importance={metric_name} of layer {name} has shape {tuple(score.shape)} for {axis}; expected {expected}"
        )
    if score.is_meta:
        return score.float()
    if bad := int((~torch.isfinite(score)).sum()):
        raise UserError(
            f"importance={metric_name} of layer {name} is not finite in {bad} of {len(score)} {axis}; "
            "check the model's weights or load it in float32"
        )
    return score.float().cpu()


def _import_for(name: str) -> None:
    """Import the module that registers the metric `name` (module.metric)."""
    module = name.rpartition(".")[0]
    try:
        import_module(module)
    except Exception as error:
        raise UserError(
            f"importance={name}: module {module} cannot be imported ({shortened(error, 200)}); expected module.metric, "
            "the module beside conf/ or installed"
        ) from error


def _parameters(text: str, known: Mapping[str, inspect.Parameter], given: str | None) -> dict[str, object]:
    """The values of a metric's parameters: those that `given` (KEY=VALUE, ...) sets, and defaults."""
    values = {key: parameter.default for key, parameter in known.items()}
    for part in given.split(",") if given is not None else ():
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or key not in known:
            names = ", ".join(f"{key}={_shown(parameter.default)}" for key, parameter in known.items()) or "none"
            raise UserError(f"importance={text}: unknown parameter {key}; expected KEY=VALUE; its parameters: {names}")
        read, description = _TYPES[known[key].annotation]
        try:
            values[key] = read(value)
        except (ValueError, KeyError):
            raise UserError(f"importance={text}: {key}={value}: expected {description}") from None
    return values


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _drawn(function: Callable[..., Tensor]) -> Callable[..., Scores]:
    def score(
        layers: Mapping[str, LinearLayer], context: Context, axes: Sequence[Axis], **parameters: object
    ) -> Scores:
        def draw(name: str, layer: LinearLayer, axis: Axis) -> Tensor:
            generator = layer_generator(context.seed, name if axis == "rows" else f"{name} columns")
            return function(layer_shape(layer)[AXES.index(axis)], generator, **parameters)

        return {name: {axis: draw(name, layer, axis) for axis in axes} for name, layer in layers.items()}

    return score


def _of_weights(term: Callable[..., Tensor]) -> Callable[..., Scores]:
    def score(
        layers: Mapping[str, LinearLayer], context: Context, axes: Sequence[Axis], **parameters: object
    ) -> Scores:
        def of_block(block: Tensor) -> Tensor:
            quantity = term(block, **parameters)
            if not isinstance(quantity, Tensor) or quantity.shape != block.shape:
                got = f"shape {tuple(quantity.shape)}" if isinstance(quantity, Tensor) else type(quantity).__name__
                raise UserError(
                    f"importance metric {term.__module__}.{term.__name__}: expected a tensor of the block's shape "
                    f"{tuple(block.shape)}, got {got}"
                )
            return quantity

        return {name: sums(layer, axes, of_block, weight_of(layer)) for name, layer in layers.items()}

    return score
