"""Sums over rows and columns of a weight, in blocks: no metric needs a temporary as large as a weight.

A metric states one elementwise quantity; how a layer stores its weight and which axis is asked for are settled here.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from rowsft.errors import UserError
from rowsft.layers.matrix import LinearLayer, layer_shape
from rowsft.layers.quantised import dequantised, is_packed
from rowsft.selection.channel import AXES, Axis

_LARGEST_BLOCK = 2**20
_SMALLEST_BLOCK = 2**12
_BLOCKS = 8


def sums(layer: LinearLayer, axes: Sequence[Axis], term: Callable[..., Tensor], *tensors: Tensor) -> dict[Axis, Tensor]:
    """Sum `term` over each row, "rows" (d_out,), and each column, "columns" (d_in,), of the weight.

    tensors: laid out as the layer's weight, which Conv1D stores transposed. term: takes a block of each, in 32 bit or
    wider, and returns the elementwise quantity of that block; it may work in place on none of them.
    """
    kind = wide(tensors[0].dtype)
    return sums_of_blocks(layer, axes, tensors[0], lambda rows: term(*(tensor[rows].to(kind) for tensor in tensors)))


@torch.no_grad()
def sums_of_blocks(
    layer: LinearLayer, axes: Sequence[Axis], like: Tensor, block_of: Callable[[slice], Tensor]
) -> dict[Axis, Tensor]:
    """Sum as `sums` does; `block_of` gives the quantity of some rows of the stored weight, whose shape is `like`'s."""
    totals = zero_scores(layer, axes)
    for rows in blocks(like):
        block = block_of(rows)
        for axis, total in totals.items():
            if stored_dim(layer, axis) == 0:
                total[rows] = block.sum(dim=1)
            else:
                total += block.sum(dim=0)
    return totals


def zero_scores(layer: LinearLayer, axes: Sequence[Axis]) -> dict[Axis, Tensor]:
    """Return zeros for a layer's scores along each axis, in 32 bit or wider, on the layer's device."""
    weight, shape = layer.weight, layer_shape(layer)
    return {axis: torch.zeros(shape[AXES.index(axis)], dtype=wide(weight.dtype), device=weight.device) for axis in axes}


def zero_weight(layer: LinearLayer) -> Tensor:
    """Return zeros laid out as the layer's weight, or as what a packed one stands for, in 32 bit or wider."""
    weight = layer.weight
    return torch.zeros(stored_shape(layer), dtype=wide(weight.dtype), device=weight.device)


def stored_shape(layer: LinearLayer) -> tuple[int, ...]:
    """Return the shape of the layer's weight, or of what a packed one stands for."""
    return layer_shape(layer) if is_packed(layer.weight) else tuple(layer.weight.shape)


def one_per_weight(layers: Mapping[str, LinearLayer]) -> dict[str, LinearLayer]:
    """Return the first layer of every weight: layers may share one."""
    first: dict[Tensor, str] = {}
    for name, layer in layers.items():
        first.setdefault(layer.weight, name)
    return {name: layers[name] for name in first.values()}


def stored_dim(layer: LinearLayer, axis: Axis) -> int:
    """Return the dimension of the stored weight that counts rows or columns (`axis`)."""
    return int((axis == "columns") != isinstance(layer, Conv1D))


def blocks(matrix: Tensor) -> Iterator[slice]:
    """Yield rows of a stored matrix, an eighth of it or 2**20 entries at a time, alike for all matrices of a shape."""
    rows, width = matrix.shape
    step = max(1, min(max(math.ceil(rows / _BLOCKS), _SMALLEST_BLOCK // width), _LARGEST_BLOCK // width))
    return (slice(first, min(first + step, rows)) for first in range(0, rows, step))


def block_bytes(layer: LinearLayer) -> int:
    """Return the bytes of the largest block of a layer's weight in 32 bit or wider."""
    matrix = torch.empty(stored_shape(layer), device="meta")
    first = next(blocks(matrix))
    return (first.stop - first.start) * matrix.shape[1] * wide(layer.weight.dtype).itemsize


def weight_of(layer: LinearLayer) -> Tensor:
    """Return the layer's weight as it is stored; that of a quantised layer is unpacked, for as long as it is held.

    Raises UserError for a quantised weight that nobody here can unpack.
    """
    parameter = layer.weight
    if not is_packed(parameter):
        return parameter.detach()
    unpacked = dequantised(layer)
    if unpacked is None:
        raise UserError(
            f"a {type(layer).__name__} holds {parameter.dtype} weights of shape {tuple(parameter.shape)}, which cannot "
            "be unpacked for scoring; use importance random, or give row_ids and column_ids"
        )
    return unpacked


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return what sums are taken in: 64 bit for a 64-bit tensor, else 32 bit."""
    return torch.promote_types(dtype if dtype.is_floating_point else torch.float32, torch.float32)
