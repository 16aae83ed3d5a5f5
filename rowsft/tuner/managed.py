"""Who manages a base weight: what others shard, move or encode must not be written in place.

Each rule looks for what a manager leaves on the layer or on its tensors. It must hold before the first forward and in
the middle of one, when a weight that FSDP has gathered looks like any other.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from rowsft.compat.accelerate import exchanges_weights, hook_of
from rowsft.compat.torch import FakeTensor, managed_by_fsdp, replicate_is_imported, replicated

WRITABLE_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

#: Managers that keep a piece of the weight, or bring it for the time of a forward.
SHARDING = ("FSDP", "replicate", "DeepSpeed ZeRO-3")
_replicated: WeakSet[nn.Module] = WeakSet()


def manager_of(base_layer: nn.Module) -> str | None:
    """Return a short name of who manages the layer's weight or bias, or None if rows may be written into them.

    Safe to call in every forward: it costs a few microseconds and sees a manager that came after the last call.
    """
    if managed_by_fsdp(base_layer):
        return "FSDP"
    hook = hook_of(base_layer)
    return (
        _replicate(base_layer)
        or ("accelerate" if hook is not None and exchanges_weights(hook) else None)
        or next(filter(None, map(_manager_of_tensor, _tensors(base_layer))), None)
    )


def is_ordinary(tensor: torch.Tensor) -> bool:
    """Return whether the values can be read and written as they are: neither encoded nor spread over processes."""
    return _encoding(tensor) is None


def _tensors(base_layer: Any) -> list[torch.Tensor]:
    return [tensor for tensor in (base_layer.weight, base_layer.bias) if tensor is not None]


def _manager_of_tensor(tensor: torch.Tensor) -> str | None:
    return _zero3(tensor) or _encoding(tensor) or _larger_storage(tensor)


def _replicate(layer: nn.Module) -> str | None:
    if not replicate_is_imported():
        return None
    if layer not in _replicated:
        _replicated.update(module for root in replicated() for module in root.modules())
    return "replicate" if layer in _replicated else None


def _zero3(tensor: torch.Tensor) -> str | None:
    return "DeepSpeed ZeRO-3" if hasattr(tensor, "ds_id") else None


def _encoding(tensor: torch.Tensor) -> str | None:
    """Quantised and sharded tensors have types of their own, or dtypes that no update can be added in.

    Fake tensors stand for ordinary ones, in a plan.
    """
    if type(tensor) is not nn.Parameter and not isinstance(tensor, FakeTensor):
        return f"{type(tensor).__module__.partition('.')[0]} {type(tensor).__name__}"
    return None if tensor.dtype in WRITABLE_DTYPES else f"quantised ({tensor.dtype})"


def _larger_storage(tensor: torch.Tensor) -> str | None:
    """A piece of a larger storage belongs to somebody who moves the whole, as flat parameters are."""
    own = tensor.numel() * tensor.element_size()
    return None if tensor.untyped_storage().nbytes() == own else "the owner of a larger storage"
