"""A weight as the matrix W (d_out, d_in), whichever way round its layer stores it."""

from __future__ import annotations

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from rowsft.compat.torch import FakeTensor


def shape_of(layer: nn.Module) -> tuple[int, int]:
    """(d_out, d_in) of a linear layer; quantised layers, whose weight has another shape, say so themselves."""
    if isinstance(layer, Conv1D):
        return layer.weight.shape[1], layer.weight.shape[0]
    d_out, d_in = layer.weight.shape if layer.weight.ndim == 2 else (None, None)
    return getattr(layer, "out_features", d_out), getattr(layer, "in_features", d_in)


#: Ending of a module class's name -> its linear layers whose weights it multiplies itself: nobody calls them.
_READERS = {
    "MultiheadAttention": ("out_proj",),
    "MambaMixer": ("dt_proj",),
    "WavLMAttention": ("q_proj", "k_proj", "v_proj", "out_proj"),
}


def is_bypassed(model: nn.Module, name: str) -> bool:
    """Whether the module that holds layer `name` reads its weight and never calls it: no adapter in it would act."""
    parent, _, own = name.rpartition(".")
    holder = type(model.get_submodule(parent)).__name__
    return any(own in layers and holder.endswith(ending) for ending, layers in _READERS.items())


def has_no_data(tensor: torch.Tensor) -> bool:
    """Whether there are sizes alone: on the meta device, or in torch's fake tensors, which claim to be on another."""
    return tensor.is_meta or isinstance(tensor, FakeTensor)


def as_matrix(layer: nn.Module, weight: torch.Tensor) -> torch.Tensor:
    """`weight`, laid out as the layer stores it, as a view (d_out, d_in); Conv1D stores W transposed."""
    return weight.t() if isinstance(layer, Conv1D) else weight


def other_rows(rows: torch.Tensor, d_out: int) -> torch.Tensor:
    """The ids (d_out - k,), ascending, of the rows that are not among `rows` (k,)."""
    chosen = torch.zeros(d_out, dtype=torch.bool, device=rows.device).index_fill_(0, rows, True)
    # A stable sort rather than nonzero(): its shape is known beforehand, on the meta device and when compiled.
    return chosen.to(torch.uint8).argsort(stable=True)[: d_out - len(rows)]
