"""How much a tuned model's changed weights change the outputs of their layers: CSD_rel = E‖ΔW h‖² / E‖W0 h‖².

The inputs h are those of the untouched model, so that E‖W0 h‖² is the same for every method.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional

from rowsft.errors import UserError
from rowsft.layers.matrix import LinearLayer, as_matrix
from rowsft.layers.quantised import is_packed
from rowsft.methods.residual import start_of
from rowsft.selection.targets import Targets, eligible_layers
from rowsft.tuner.merging import MergeableLayer

#: The sum of ‖ΔW h‖² over inputs h (n, d_in) as a float64 scalar.
SquaredChange = Callable[[Tensor], Tensor]


class ChangedLayer(NamedTuple):
    """A layer that holds W0 while it is watched, and what its weight's change does."""

    layer: nn.Module
    squared_change: SquaredChange


class Sums(NamedTuple):
    """Sums over tokens, of one layer or of several: changed of ‖ΔW h‖², original of ‖W0 h‖²."""

    changed: float
    original: float

    @property
    def csd_rel(self) -> float | None:
        """Their ratio; None where the original is 0."""
        return self.changed / self.original if self.original else None


def total(sums: Mapping[str, Sums]) -> Sums:
    """Return the sums over all layers."""
    return Sums(sum(each.changed for each in sums.values()), sum(each.original for each in sums.values()))


def of_adapter(model: PeftModel) -> dict[str, ChangedLayer]:
    """Return the layers that the active adapter changes, by full name in the base model.

    Row-SFT multiplies its rows and columns alone. Of any other adapter ΔW is what merging it into a float64 copy of the
    layer changes there: a dense matrix of one layer at a time. Raises UserError for a layer that cannot be merged so.
    """
    layers = {}
    for name, layer in model.get_base_model().named_modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        base, adapter = layer.get_base_layer(), layer.active_adapters[0]
        if not isinstance(base, LinearLayer):
            raise UserError(
                f"trainer.forgetting.path: layer {name} is a {type(base).__name__}, which is not measured; set it to "
                "null, or use a method that changes linear layers"
            )
        if isinstance(layer, MergeableLayer):
            layers[name] = ChangedLayer(base, partial(layer.squared_change, adapter=adapter))
        elif is_packed(base.weight):
            raise UserError(
                f"trainer.forgetting.path: layer {name} holds {base.weight.dtype} values (quantised), into which this "
                "adapter cannot be merged to see its change of W; give a base model that is not quantised, or set it "
                "to null"
            )
        else:
            layers[name] = ChangedLayer(base, partial(_merged, layer, adapter))
    return layers


def of_weights(layers: Mapping[str, LinearLayer], tuned: Callable[[Tensor], Tensor]) -> dict[str, ChangedLayer]:
    """Return plain layers that hold their originals; `tuned` gives what a weight is after training."""

    def change(weight: Tensor, layer: nn.Module, x: Tensor) -> Tensor:
        if is_packed(weight):
            # What no method trains in place.
            return torch.zeros((), dtype=torch.float64, device=x.device)
        after = tuned(weight).to(x)
        return _dense(as_matrix(layer, after - weight.detach().to(x)), x)

    return {name: ChangedLayer(layer, partial(change, layer.weight, layer)) for name, layer in layers.items()}


@contextmanager
def untouched(
    model: nn.Module, targets: Targets, tuned: AbstractContextManager[Callable[[Tensor], Tensor]]
) -> Iterator[dict[str, ChangedLayer]]:
    """`model` computes inside what it did before training; yields its layers with what training has changed in them.

    targets: which layers of a model without an adapter. tuned: what puts the originals of that model back; gives what
    each weight is after training.
    """
    if isinstance(model, PeftModel):
        if (start := start_of(model)) is not None:
            with start.put_back(model) as changed:
                yield {name: ChangedLayer(each.layer, partial(_since, each.change)) for name, each in changed.items()}
            return
        layers = of_adapter(model)
        with model.disable_adapter():
            yield layers
        return
    with tuned as after:
        yield of_weights(eligible_layers(model, targets), after)


@contextmanager
def watched(layers: Mapping[str, ChangedLayer], counted: Callable[[], Tensor]) -> Iterator[dict[str, Sums]]:
    """Fill the mapping that it yields, when the block ends, with every layer's sums over the block's forwards.

    counted: which of the tokens (batch, length) of the forward under way count. The layers' outputs must be those of
    W0. Raises UserError for a layer whose inputs are not one a token.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in layers}

    def hook(name: str) -> Callable[..., None]:
        def look(layer: Any, args: tuple, output: Tensor) -> None:
            # Sums of squares of a 16-bit change would be lost in its rounding.
            with _without_autocast(output.device.type), torch.no_grad():
                found[name].append(_sums(name, layers[name], args[0], output, counted()))

        return look

    handles = [each.layer.register_forward_hook(hook(name)) for name, each in layers.items()]
    sums: dict[str, Sums] = {}
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()
    for name, parts in found.items():
        changed, original = torch.stack(parts).sum(0).tolist() if parts else (0.0, 0.0)
        sums[name] = Sums(changed, original)


def _without_autocast(device: str) -> AbstractContextManager:
    # A model without data, which a plan has, lies on a device that knows none.
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def _sums(name: str, changed: ChangedLayer, x: Tensor, output: Tensor, counted: Tensor) -> Tensor:
    """‖ΔW h‖² and ‖W0 h‖² (2,) of one forward."""
    # A head is shown the last positions alone.
    counted = counted[:, -x.shape[1] :].to(x.device) if x.ndim == 3 else counted
    if x.ndim != 3 or counted.shape != x.shape[:2]:
        raise UserError(
            f"trainer.forgetting.path: layer {name} takes inputs of shape {tuple(x.shape)}, which are not one a token; "
            "leave it out in model.exclude_modules, or set trainer.forgetting.path=null"
        )
    kind = torch.promote_types(x.dtype, torch.float32)
    inputs, outputs = x[counted].to(kind), output[counted].to(kind)
    bias = getattr(changed.layer, "bias", None)
    if bias is not None:
        outputs = outputs - bias.to(kind)
    return torch.stack([changed.squared_change(inputs), outputs.square().sum(dtype=torch.float64)])


def _dense(change: Tensor, x: Tensor) -> Tensor:
    return functional.linear(x, change).square().sum(dtype=torch.float64)


def _since(change: Callable[[], Tensor], x: Tensor) -> Tensor:
    """`SquaredChange` of an adapter that has changed the base weight, too."""
    return _dense(change().to(x), x)


def _merged(layer: Any, adapter: str, x: Tensor) -> Tensor:
    """`SquaredChange` of a PEFT layer."""
    merged = copy.deepcopy(layer).double()
    base = merged.get_base_layer()
    before = base.weight.detach().clone()
    merged.merge(adapter_names=[adapter])
    return _dense(as_matrix(base, base.weight.detach() - before).to(x), x)
