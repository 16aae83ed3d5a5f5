"""A weight as the matrix W (d_out, d_in), whichever way round its layer stores it."""

from __future__ import annotations

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from rowsft.compat.torch import FakeTensor

#: What row-SFT adapts; quantised layers are kinds of nn.Linear.
LinearLayer = nn.Linear | Conv1D


def layer_shape(layer: LinearLayer) -> tuple[int, int]:
    """Return (d_out, d_in), whichever way round the layer stores its weight; one in 4 bits packs it otherwise."""
    return (layer.nf, layer.nx) if isinstance(layer, Conv1D) else (layer.out_features, layer.in_features)


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
