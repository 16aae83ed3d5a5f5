"""Sums over rows and columns of a weight, in blocks: no metric needs a temporary as large as a weight.

A metric states one elementwise quantity; how a layer stores its weight and which axis is asked for are settled here.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rowsft.errors import UserError
from rowsft.selection.targets import layer_shape

Axis = Literal["out", "in"]
#: What a metric gives: layer name -> axis -> one score per row (axis "out", (d_out,)) or column (axis "in", (d_in,)).
Scores = dict[str, dict[str, Tensor]]

_LARGEST_BLOCK = 2**20
_SMALLEST_BLOCK = 2**12
_BLOCKS = 8


def sums(layer: nn.Module, axes: Sequence[Axis], term: Callable[..., Tensor], *tensors: Tensor) -> dict[str, Tensor]:
    """Sum `term` along each axis: "out" gives (d_out,), summed over inputs; "in" gives (d_in,), summed over outputs.

    tensors: laid out as the layer's weight, which Conv1D stores transposed. term: takes a block of each, in 32 bit or
    wider, and returns the elementwise quantity of that block; it may work in place on none of them.
    """
    kind = wide(tensors[0].dtype)
    return sums_of_blocks(layer, axes, tensors[0], lambda rows: term(*(tensor[rows].to(kind) for tensor in tensors)))


@torch.no_grad()
def sums_of_blocks(
    layer: nn.Module, axes: Sequence[Axis], like: Tensor, block_of: Callable[[slice], Tensor]
) -> dict[str, Tensor]:
    """As `sums`, with `block_of` giving the elementwise quantity of some rows of the stored weight (`like`'s shape)."""
    totals = zero_scores(layer, axes)
    for rows in blocks(like):
        block = block_of(rows)
        for axis, total in totals.items():
            if stored_dim(layer, axis) == 0:
                total[rows] = block.sum(dim=1)
            else:
                total += block.sum(dim=0)
    return totals


def zero_scores(layer: nn.Module, axes: Sequence[Axis]) -> dict[str, Tensor]:
    """Zeros for a layer's scores along each axis, in 32 bit or wider, on the layer's device."""
    weight, sizes = layer.weight, dict(zip(("out", "in"), layer_shape(layer), strict=True))
    return {axis: torch.zeros(sizes[axis], dtype=wide(weight.dtype), device=weight.device) for axis in axes}


def one_per_weight(layers: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """The first layer of every weight: layers may share one."""
    first = {layer.weight: name for name, layer in reversed(layers.items())}
    return {name: layer for name, layer in layers.items() if first[layer.weight] == name}


def stored_dim(layer: nn.Module, axis: Axis) -> int:
    """The dimension of the stored weight that counts rows (axis "out") or columns (axis "in")."""
    return int((axis == "in") != isinstance(layer, Conv1D))


def blocks(matrix: Tensor) -> Iterator[slice]:
    """Rows of a stored matrix, an eighth of it or 2**20 entries at a time; the same for every matrix of that shape."""
    rows, width = matrix.shape
    step = max(1, min(max(math.ceil(rows / _BLOCKS), _SMALLEST_BLOCK // width), _LARGEST_BLOCK // width))
    return (slice(first, min(first + step, rows)) for first in range(0, rows, step))


def block_bytes(matrix: Tensor) -> int:
    """Bytes of the largest block of `matrix` in 32 bit or wider."""
    first = next(blocks(matrix))
    return (first.stop - first.start) * matrix.shape[1] * wide(matrix.dtype).itemsize


def weight_of(layer: nn.Module) -> Tensor:
    """The layer's weight as it is stored; that of a quantised layer is unpacked, for as long as it is held.

    Raises UserError for a quantised weight that nobody here can unpack.
    """
    parameter = layer.weight
    if parameter.is_floating_point() and not type(parameter).__module__.startswith("torchao."):
        return parameter.detach()
    unpacked = dequantize_module_weight(layer).detach()
    if layer.weight is not parameter and layer.weight.device == parameter.device:
        # PEFT puts an equal one in its place, but a parameter is known by its identity.
        layer.weight = parameter
    if not unpacked.is_floating_point() or unpacked.shape != layer_shape(layer):
        raise UserError(
            f"a {type(layer).__name__} holds {parameter.dtype} weights of shape {tuple(parameter.shape)}, which cannot "
            "be unpacked for scoring; use importance random, or give row_ids and column_ids"
        )
    return unpacked


def wide(dtype: torch.dtype) -> torch.dtype:
    """What sums are taken in: 64 bit for a 64-bit tensor, else 32 bit."""
    return torch.promote_types(dtype if dtype.is_floating_point else torch.float32, torch.float32)
