"""4-bit layers of bitsandbytes on a CPU: keep their weights in the layout that training and scoring can read.

On processors with AVX512-BF16 the first evaluation forward of a `Linear4bit` repacks its weight for faster inference.
Whatever reads the weight afterwards (dequantising it for scores, the input's gradient) takes it for what it was: scores
are wrong and gradients missing, without an error.
"""

from __future__ import annotations

import sys

import torch
from torch import nn


def keep_layout(model: nn.Module) -> None:
    """Turn the repacking off in every layer of `model` that has it, and undo it where it has happened.

    The scales of a weight that was repacked stay rounded to 16 bits, as its evaluation used them.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False
            if getattr(getattr(module.weight, "quant_state", None), "packing_format_for_cpu", False):
                _unpack(module)


@torch.no_grad()
def _unpack(module: nn.Module) -> None:
    functional = sys.modules["bitsandbytes"].functional
    state = module.weight.quant_state
    scales = state.absmax.t().reshape(-1).float()
    # Its own inverse, less what it does to scales: it quantises them once more, or leaves them transposed.
    state.original_nested = False
    module.weight.data, state = functional._convert_weight_packed_for_cpu_inverse(module.weight.data, state)
    state.absmax, state.nested = scales, False
    module.weight.quant_state = module.quant_state = state
