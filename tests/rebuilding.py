"""Two equal adapted models, one that rebuilds the inputs of its rows in the backward pass and one that keeps them."""

from collections.abc import Callable

import torch
from dense import Values, values
from families import MORE_FAMILIES
from peft import get_peft_model
from rows import adapt, family, row_layers, shake
from torch import nn

from rowsft import RowSFTConfig

#: Nodes that only change the shape, the layout or the dtype of what is below them.
PASSING = ("ToCopy", "Clone", "View", "UnsafeView", "ReshapeAlias", "Transpose", "Permute")
#: How far, norm by norm, a gradient may be off where LayerNorm's output is rebuilt from its mean and rstd, which a CPU
#: saves in 16 bit when the weights are. Terms of a gradient that cancel leave more of that than X itself shows.
NORM_TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-5}


def two_models(build: Callable[[bool], nn.Module]) -> tuple[nn.Module, nn.Module]:
    """(rebuilding, keeping), shaken alike; `build` takes the value of recompute_inputs."""
    models = build(True), build(False)
    for model in models:
        shake(model)
    return models


def of_family(name: str, channel: str = "rows", dtype: torch.dtype = torch.float32, **settings):
    """(rebuilding, keeping, batch) of one of the three families, on random ids."""
    _, batch, targets = family(name, dtype)

    def build(recompute: bool):
        return adapt(family(name, dtype)[0], targets, channel=channel, recompute_inputs=recompute, **settings)

    return *two_models(build), batch


def of_any_family(name: str, dtype: torch.dtype, attention: str):
    """(rebuilding, keeping, batch) of one of `MORE_FAMILIES`, on "all-linear"."""

    def build(recompute: bool):
        model = MORE_FAMILIES[name].build(dtype)
        model.set_attn_implementation(attention)
        config = RowSFTConfig(rows=5, importance="l2", target_modules="all-linear", recompute_inputs=recompute)
        return get_peft_model(model, config)

    return *two_models(build), MORE_FAMILIES[name].batch(dtype)


def gradients(model: nn.Module, adapters=("default",)) -> Values:
    """A copy of the `.grad` of every value, which is then forgotten."""
    held = {key: parameter.grad.clone() for key, parameter in values(model, adapters).items()}
    model.zero_grad()
    return held


def compare(rebuilt: Values, kept: Values, normed: set[str], dtype: torch.dtype = torch.float32) -> None:
    """Assert equal gradients: bit for bit, except in the layers `normed`, whose input LayerNorm made."""
    assert rebuilt.keys() == kept.keys()
    for key, gradient in rebuilt.items():
        assert kept[key].norm() > 0, key
        if key[0] in normed:
            error = (gradient.double() - kept[key].double()).norm() / kept[key].double().norm()
            assert error <= NORM_TOLERANCE[dtype], (key, error.item())
        else:
            assert torch.equal(gradient, kept[key]), key


def made_by(x: torch.Tensor) -> str:
    """The operation that made x's values, through whatever only passes them on; "nothing" where no graph did."""
    node = x.grad_fn
    while node is not None:
        name = type(node).__name__.removesuffix("0").removesuffix("Backward")
        if name not in PASSING:
            return name
        node = node.next_functions[0][0]
    return "nothing"


def makers(model: nn.Module, batch: dict) -> dict[str, set[str]]:
    """Layer -> what made its inputs, in all of its calls in one forward."""
    seen: dict[str, set[str]] = {}

    def watch(layer, args):
        seen.setdefault(layer.layer_name, set()).add(made_by(args[0]))

    handles = [layer.register_forward_pre_hook(watch) for layer in row_layers(model).values()]
    model(**batch)
    for handle in handles:
        handle.remove()
    return seen


def normed_layers(model: nn.Module, batch: dict) -> set[str]:
    """The layers with an input that LayerNorm made."""
    return {name for name, made in makers(model, batch).items() if "NativeLayerNorm" in made}


def sources(model: nn.Module) -> tuple[set[str], set[str]]:
    """The layers whose input is rebuilt, and those whose input is kept, as the model says of its last graph."""
    told = model.base_model.input_sources()
    assert told.keys() == row_layers(model).keys()
    rebuilt = {name for name, text in told.items() if text.startswith("rebuilt")}
    kept = {name for name, text in told.items() if text.startswith("kept")}
    assert rebuilt | kept == told.keys(), told
    return rebuilt, kept
