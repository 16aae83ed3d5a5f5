"""Who manages a base weight: what others shard, move or encode must not be written in place.

Each rule looks for what a manager leaves on the layer or on its tensors, and imports nothing. It must hold before the
first forward and in the middle of one, when a weight that FSDP has gathered looks like any other.
"""

from __future__ import annotations

import sys
from weakref import WeakSet

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

WRITABLE_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

REPLICATE = "torch.distributed._composable.replicate_with_fsdp"
#: Managers that keep a piece of the weight, or bring it for the time of a forward.
SHARDING = ("FSDP", "replicate", "DeepSpeed ZeRO-3")
_replicated: WeakSet[nn.Module] = WeakSet()


def manager_of(base_layer: nn.Module) -> str | None:
    """Return a short name of who manages the layer's weight or bias, or None if rows may be written into them.

    Safe to call in every forward: it costs a few microseconds and sees a manager that came after the last call.
    """
    return (
        _fsdp(base_layer)
        or _replicate(base_layer)
        or _accelerate(base_layer)
        or next(filter(None, map(_manager_of_tensor, _tensors(base_layer))), None)
    )


def is_ordinary(tensor: torch.Tensor) -> bool:
    """Return whether the values can be read and written as they are: neither encoded nor spread over processes."""
    return _encoding(tensor) is None


def _tensors(base_layer: nn.Module) -> list[torch.Tensor]:
    return [tensor for tensor in (base_layer.weight, base_layer.bias) if tensor is not None]


def _manager_of_tensor(tensor: torch.Tensor) -> str | None:
    return _zero3(tensor) or _encoding(tensor) or _larger_storage(tensor)


def _fsdp(layer: nn.Module) -> str | None:
    """FullyShardedDataParallel and fully_shard put this mark, meant for the compiler, on every module they manage."""
    return "FSDP" if getattr(layer, "_is_fsdp_managed_module", False) else None


def _replicate(layer: nn.Module) -> str | None:
    """torch's composable replicate exchanges parameters as fully_shard does, but marks the module it is called on only.

    The function of the same name that is built on DDP leaves parameters alone.
    """
    replicate = sys.modules.get(REPLICATE)
    if replicate is None:
        return None
    if layer not in _replicated:
        for root in sys.modules["torch.distributed._composable_state"]._module_state_mapping:
            if isinstance(root, replicate.ReplicateModule):
                _replicated.update(root.modules())
    return "replicate" if layer in _replicated else None


def _accelerate(layer: nn.Module) -> str | None:
    """Hooks of accelerate on the layer itself bring or cast the weight after our forward has begun."""
    hook = vars(layer).get("_hf_hook")
    return "accelerate" if hook is not None and _exchanges_weights(hook) else None


def _exchanges_weights(hook) -> bool:
    """Only hooks that say offload=False are known to leave the weight where it is, as those of a device_map do."""
    if hasattr(hook, "hooks"):
        return any(map(_exchanges_weights, hook.hooks))
    return getattr(hook, "offload", True)


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
