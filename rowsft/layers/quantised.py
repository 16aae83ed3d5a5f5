"""Quantised layers: which they are, what their weights stand for, and the layout in which training can read them.

On processors with AVX512-BF16 the first evaluation forward of a bitsandbytes `Linear4bit` on a CPU repacks its weight
for faster inference. Whatever reads the weight afterwards (dequantising it for scores, the input's gradient) takes it
for what it was: scores are wrong and gradients missing, without an error.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from .matrix import layer_shape


def is_packed(parameter: torch.Tensor | None) -> bool:
    """Whether a weight is stored otherwise than as the real numbers that it stands for."""
    if parameter is None:
        return False
    return not parameter.is_floating_point() or is_torchaos(parameter)


def is_torchaos(parameter: object) -> bool:
    """Whether a weight is packed by torchao: it says that it is of real numbers, and many operators do not know it."""
    return type(parameter).__module__.startswith("torchao.")


def stored(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return the tensors that a tensor's memory is: codes and scales of a torchao weight, which has none of its own."""
    if not is_torchaos(tensor):
        return [tensor]
    wrapper: Any = tensor
    return [getattr(wrapper, name) for name in wrapper.__tensor_flatten__()[0]]


def is_quantised(layer: nn.Module) -> bool:
    """Whether it is a linear layer with a packed weight."""
    return isinstance(layer, nn.Linear) and is_packed(layer.weight)


def quantised_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers with packed weights, by full name."""
    return {
        name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and is_packed(layer.weight)
    }


def dequantised(layer: Any) -> torch.Tensor | None:
    """Return the weight (d_out, d_in) that a quantised layer stands for, made anew; None where nobody here can."""
    # Importing peft imports the tuner, which imports this module.
    from peft.utils.integrations import dequantize_module_weight

    parameter = layer.weight
    unpacked = dequantize_module_weight(layer).detach()
    if layer.weight is not parameter and layer.weight.device == parameter.device:
        # PEFT puts an equal one in its place, but a parameter is known by its identity.
        layer.weight = parameter
    return unpacked if unpacked.is_floating_point() and unpacked.shape == layer_shape(layer) else None


def keep_layout(model: nn.Module) -> None:
    """Turn the repacking off in every layer of `model` that has it, and undo it where it has happened.

    The scales of a weight that was repacked stay rounded to 16 bits, as its evaluation used them.
    """
    layers: Iterable[Any] = model.modules()
    for layer in layers:
        if getattr(layer, "support_avx512bf16_for_cpu", False):
            layer.support_avx512bf16_for_cpu = False
            if getattr(getattr(layer.weight, "quant_state", None), "packing_format_for_cpu", False):
                _unpack(layer)


@torch.no_grad()
def _unpack(layer: Any) -> None:
    functional = sys.modules["bitsandbytes"].functional
    state = layer.weight.quant_state
    scales = state.absmax.t().reshape(-1).float()
    # Its own inverse, less what it does to scales: it quantises them once more, or leaves them transposed.
    state.original_nested = False
    layer.weight.data, state = functional._convert_weight_packed_for_cpu_inverse(layer.weight.data, state)
    state.absmax, state.nested = scales, False
    layer.weight.quant_state = layer.quant_state = state
