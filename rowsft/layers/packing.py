"""A linear layer packed in 4 or 8 bits by a library, and unpacked again.

nf4 is bitsandbytes' (Dettmers et al., arXiv 2305.14314, section 3): 4-bit codes and one 32-bit scale for every 64
entries of W; nf4_double quantises the scales too. int8 is torchao's: 8-bit whole numbers and one scale a row.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import nn

from .quantised import dequantised, quantised_layers

#: What a base may be packed in -> the library that does it.
LIBRARIES = {"nf4": "bitsandbytes", "nf4_double": "bitsandbytes", "int8": "torchao"}
#: Entries of W that share a scale in 4 bits.
BLOCK = 64
# Scales that share a scale of their own under double quantisation.
_SCALES_BLOCK = 256


def packed(layer: nn.Linear, kind: str) -> nn.Linear:
    """Return a frozen layer with the weight of `layer` in 4 or 8 bits, and its bias as it is.

    kind: one of `LIBRARIES`. Multiplies in the dtype of the weight. On the meta device it has the sizes alone.
    """
    weight = layer.weight.detach()
    if kind == "int8":
        return _int8(layer, weight)
    bnb: Any = import_module("bitsandbytes")
    double = kind == "nf4_double"
    made = bnb.nn.Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=False,
        compute_dtype=weight.dtype,
        compress_statistics=double,
        quant_type="nf4",
        device="meta",
    )
    if weight.is_meta:
        codes, state = _sizes(bnb, weight, double)
    else:
        codes, state = bnb.functional.quantize_4bit(
            weight.contiguous(), blocksize=BLOCK, compress_statistics=double, quant_type="nf4"
        )
    made.weight = bnb.nn.Params4bit(
        codes,
        requires_grad=False,
        quant_state=state,
        blocksize=BLOCK,
        compress_statistics=double,
        quant_type="nf4",
        module=made,
        bnb_quantized=True,
    )
    made.quant_state = state
    made.bias = layer.bias
    return made.requires_grad_(False).train(layer.training)


def unpack(model: nn.Module) -> nn.Module:
    """Put plain layers with the same values in the places of a model's quantised ones, one at a time; returns it."""
    for name, layer in quantised_layers(model).items():
        weight = dequantised(layer)
        assert weight is not None, "packed here, or by a library that PEFT knows"
        made = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        made.weight = nn.Parameter(weight, requires_grad=False)
        made.bias = layer.bias
        replace(model, name, made.train(layer.training))
    mark(model, None)
    return model


def replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a layer in the place of another."""
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, layer)


def mark(model: Any, kind: str | None) -> None:
    """Tell PEFT, by transformers' own attribute, whether the model's layers are those of bitsandbytes."""
    model.is_loaded_in_4bit = kind is not None and LIBRARIES[kind] == "bitsandbytes"


def _int8(layer: nn.Linear, weight: torch.Tensor) -> nn.Linear:
    quantization: Any = import_module("torchao.quantization")
    made = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    made.weight = nn.Parameter(weight, requires_grad=False)
    made.bias = layer.bias
    quantization.quantize_(made, quantization.Int8WeightOnlyConfig())
    return made.requires_grad_(False).train(layer.training)


def _sizes(bnb: Any, weight: torch.Tensor, double: bool) -> tuple[torch.Tensor, Any]:
    """Codes and scales of a weight without data, as `quantize_4bit` would make them."""
    blocks = -(-weight.numel() // BLOCK)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    state = {"shape": weight.shape, "dtype": weight.dtype, "blocksize": BLOCK, "quant_type": "nf4", "code": empty(16)}
    if double:
        scales = bnb.functional.QuantState(
            absmax=empty(-(-blocks // _SCALES_BLOCK)), code=empty(256), blocksize=_SCALES_BLOCK, dtype=torch.float32
        )
        state |= {"absmax": empty(blocks, dtype=torch.uint8), "state2": scales, "offset": empty()}
    else:
        state["absmax"] = empty(blocks)
    codes = empty((weight.numel() + 1) // 2, 1, dtype=torch.uint8)
    return codes, bnb.functional.QuantState(**state)
