"""The tensors of one base layer as they are now, looked at once for as long as they stay the same."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from rowsft.compat.accelerate import hook_of
from rowsft.compat.torch import has_forward_hooks, managed_by_fsdp, parameters_of, replicate_is_imported
from rowsft.layers.matrix import has_no_data
from rowsft.layers.quantised import is_packed

from .managed import is_ordinary, manager_of

_PRODUCTS = (nn.Linear.forward, Conv1D.forward)


class BaseTensors:
    """Weight and bias of a base layer: as parameters, as bare tensors to write in, and whether that is allowed.

    is_ordinary: whether their values can be read and written as they are. is_packed: whether the weight is quantised.
    is_writable: whether a forward may write, because nobody else manages or trains them, and what the layer computes is
    the product with them, which neither a forward of its own nor hooks change: the gradient is that of the product.
    key: where the weight lies; the same for all layers that share it. versioned: those with a version counter.
    has_data: whether the weight is on a device, and no fake.
    """

    __slots__ = (
        "_manager_marks",
        "bias",
        "has_data",
        "is_ordinary",
        "is_packed",
        "is_writable",
        "key",
        "parameters",
        "tensors",
        "versioned",
        "weight",
    )

    def __init__(self, layer: nn.Module):
        self.weight = cast(nn.Parameter, layer.weight)
        self.bias = cast(nn.Parameter | None, layer.bias)
        bias = {} if self.bias is None else {"bias": self.bias}
        self.parameters: dict[str, nn.Parameter] = {"weight": self.weight, **bias}
        self.is_ordinary = all(map(is_ordinary, self.parameters.values()))
        self.is_packed = is_packed(self.weight)
        self.is_writable = (
            manager_of(layer) is None
            and type(layer).forward in _PRODUCTS
            and not has_forward_hooks(layer)
            and not any(each.requires_grad or each.is_inference() for each in self.parameters.values())
        )
        # `.data` shares memory, but no version counter.
        self.tensors = {name: each.data for name, each in self.parameters.items()} if self.is_ordinary else {}
        self.versioned = [each for each in self.parameters.values() if not each.is_inference()]
        self.has_data = type(self.weight) is nn.Parameter and not has_no_data(self.weight)
        self.key = self.weight.data_ptr() if self.has_data else id(self.weight)
        self._manager_marks = _marks(layer, self.weight, self.bias)

    def is_of(self, layer: nn.Module) -> bool:
        """Whether this is still true of the layer; never where its weight is no parameter of its own."""
        parameters = parameters_of(layer)
        weight, bias = parameters.get("weight"), parameters.get("bias")
        return (
            weight is self.weight
            and bias is self.bias
            and (not self.has_data or weight.data_ptr() == self.key)
            and _marks(layer, weight, bias) == self._manager_marks
        )

    def has_not_moved(self) -> bool:
        """Whether the weight still lies where it lay."""
        return not self.has_data or self.weight.data_ptr() == self.key


def _marks(layer: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None) -> tuple:
    """What tells a layer that somebody has begun to manage, or to train, from the same layer before."""
    return (
        weight.requires_grad,
        has_forward_hooks(layer),
        bias is not None and bias.requires_grad,
        managed_by_fsdp(layer),
        hook_of(layer),
        manager_of(layer) if replicate_is_imported() else None,
    )
