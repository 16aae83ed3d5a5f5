"""A base in 4 bits that a method has put in the place of the loaded one: kept beside the adapter, and put back."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rowsft.errors import UserError
from rowsft.layers.quantised import is_quantised

#: Beside an adapter that belongs to a base of its own: what the loaded one lacks.
FILE = "quantised_base.safetensors"
_CODES = "codes"


def put(layer: Any, weight: Any) -> None:
    """Give a 4-bit layer another packed weight of its shape, on the layer's device."""
    weight = weight.to(layer.weight.device)
    weight.module = layer
    layer.weight, layer.quant_state = weight, weight.quant_state


def write(layers: dict[str, nn.Module], folder: Path) -> None:
    """Write codes and scales of 4-bit layers, by full name, into `folder`."""
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        weight: Any = layer.weight
        parts = {_CODES: weight.data, **weight.quant_state.as_dict(packed=True)}
        tensors |= {f"{name}.{part}": tensor.cpu().clone().contiguous() for part, tensor in parts.items()}
    save_file(tensors, folder / FILE)


def read(model: nn.Module, names: Iterable[str], folder: Path) -> None:
    """Put what `write` wrote into the layers of these names of a model that is loaded in 4 bits.

    Raises UserError for a file that is missing or damaged, or of another model.
    """
    path = folder / FILE
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error}); the adapter belongs to the base in this file") from error
    for name in names:
        layer: Any = model.get_submodule(name)
        parts = {key.removeprefix(f"{name}."): part for key, part in tensors.items() if key.startswith(f"{name}.")}
        codes = parts.pop(_CODES, None)
        if codes is None or not is_quantised(layer) or codes.shape != layer.weight.shape:
            raise UserError(
                f"{path}: does not fit layer {name}; load the base model in 4 bits, as the adapter's run did "
                "(model.quantize)"
            )
        kind, device = type(layer.weight), layer.weight.device
        put(layer, kind.from_prequantized(data=codes, quantized_stats=parts, device=device, module=layer))
