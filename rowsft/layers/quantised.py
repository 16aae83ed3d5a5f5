"""4-bit layers of bitsandbytes on a CPU: keep their weights in the layout that training and scoring can read.

On processors with AVX512-BF16 the first evaluation forward of a `Linear4bit` repacks its weight for faster inference.
Whatever reads the weight afterwards (dequantising it for scores, the input's gradient) takes it for what it was: scores
are wrong and gradients missing, without an error.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


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
