"""What is used of torch beyond its published interface. Checked in torch 2.11 to 2.13."""

import sys
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    in_kernel_invocation_manager,
    unset_fake_temporarily,
)
from torch.autograd import Variable
from torch.autograd.graph import Node
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = [
    "FakeTensor",
    "FakeTensorMode",
    "TorchDispatchMode",
    "in_kernel_invocation_manager",
    "unset_fake_temporarily",
]

# Fake tensors have no data and say which device they are on: a plan under autocast is made of them. Dispatch modes see
# every operator of a thread, autograd's too. torch's documentation describes both; their modules have private names.

#: Errors of fake tensors that are asked for what only data can tell.
LACKS_DATA = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedFakeTensorException)

# The backward pass ---------------------------------------------------------------------------------------------------

#: The number of the backward pass that this thread is in, -1 outside; hooks of the public interface are not told.
backward_pass: Callable[[], int] = torch._C._current_graph_task_id
#: Call a function when the backward pass under way has ended, as DDP and FSDP have it done.
when_backward_ends: Callable[[Callable[[], None]], None] = Variable._execution_engine.queue_callback
#: Whether autocast is on for any device; the public `torch.is_autocast_enabled` asks for one.
autocast_is_on: Callable[[], bool] = torch._C._is_any_autocast_enabled
#: Whether a transform of torch.func runs; its functions know of their own levels only.
functorch_is_on: Callable[[], bool] = torch._C._are_functorch_transforms_active


def version_of(tensor: Tensor) -> int:
    """Return how often autograd has seen the tensor written in place; `increment_version` is public, this is not."""
    return tensor._version


def hooks_on_saved_tensors() -> bool:
    """Return whether what is saved now goes through hooks, as under checkpointing or offloading.

    `saved_tensors_hooks` is public; whether one is in force is not.
    """
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def plain_apply(function: type[torch.autograd.Function]) -> Callable[..., Tensor]:
    """Return `function.apply` less its look at every argument for torch.func, whose transforms must not be on.

    Where a step takes milliseconds, that look is a tenth of a layer's time.
    """
    return super(torch.autograd.Function, function).apply  # type: ignore[misc]  # its class is written in C


# What a graph's node holds: its class says which operator made it, `_saved_NAME` what that operator saved. torch
# documents the attributes in its notes on autograd, and neither their names nor those of the classes.


def kind_of(node: Node) -> str:
    """Return the name of a node's class, as "MulBackward0"."""
    return type(node).__name__


def saved(node: Node, name: str) -> Any:
    """Return what a node has saved; None for a tensor that it did not need.

    Raises RuntimeError where a tensor was changed in place since.
    """
    return getattr(node, f"_saved_{name}")


def saved_by_hooks(node: Node, name: str) -> bool:
    """Return whether hooks hold the tensor that a node has saved, so that reading it runs them."""
    return getattr(node, f"_raw_saved_{name}").unpack_hook is not None


def first_output(node: Node) -> Any:
    """Return shape, dtype and device of what the node's operator returned first."""
    return node._input_metadata[0]


# Storages, operators and modules -------------------------------------------------------------------------------------

#: A storage's own number while it lives: on the meta device the address of the data is 0 for all.
storage_id: Callable[[torch.UntypedStorage], int] = attrgetter("_cdata")
#: An operator's overloads together, as `torch.ops.aten.mul`, and the schema of one; they come with every dispatch mode.
packet_of: Callable[[Any], Any] = attrgetter("_overloadpacket")
schema_of: Callable[[Any], Any] = attrgetter("_schema")
#: Context manager in which operators run below all dispatch modes.
without_dispatch: Callable[[], Any] = torch._C._DisableTorchDispatch
#: Where a module keeps its tensors and its parts.
REGISTERED = ("_parameters", "_buffers", "_modules")


def parameters_of(module: nn.Module) -> dict[str, Any]:
    """Return the module's own parameters by name, to look at or to replace; `named_parameters` would take too long."""
    return module._parameters


def buffers_of(module: nn.Module) -> dict[str, Any]:
    """Return the module's own buffers in the same way."""
    return module._buffers


def has_forward_hooks(module: nn.Module) -> bool:
    """Return whether hooks run before or after the module's forward: they can be added, and not be listed."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def below_autocast():
    """Return a context manager in which autocast on a CPU converts nothing more: for an operator put in its place."""
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)
    return torch._C._ExcludeDispatchKeyGuard(keys)


def take_back(library: torch.library.Library) -> None:
    """Unregister the operators of a library, which torch otherwise does when Python ends."""
    library._destroy()


def make_state(optimizer: torch.optim.AdamW) -> None:
    """Make the state that AdamW's first step would make, without a step."""
    for group in optimizer.param_groups:
        optimizer._init_group(group, [], [], [], [], [], [])


def profiled_nodes(profiled: torch.profiler.profile) -> list[Any]:
    """Return the roots of a profile's event tree: the flat events carry sizes without addresses."""
    results: Any = profiled.profiler
    return list(results.kineto_results.experimental_event_tree())


def is_cpu_allocation(node: Any) -> bool:
    """Return whether a node of that tree allocates or frees memory of the CPU."""
    return node.tag == torch._C._profiler._EventType.Allocation and node.extra_fields.device.type == "cpu"


# Operators of torch.ops.aten without a public name: attention as fused kernels, in the order of their names here, and
# what a number taken out of a tensor, a conversion, a mixture of experts and an indexed assignment come to.
_aten = torch.ops.aten
_KERNELS = ("flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu")
ATTENTION = [getattr(_aten, f"_scaled_dot_product_{kernel}") for kernel in _KERNELS]
ATTENTION_BACKWARD = [getattr(_aten, f"_scaled_dot_product_{kernel}_backward") for kernel in _KERNELS]
FLASH_ATTENTION, EFFICIENT_ATTENTION, _, CPU_ATTENTION = ATTENTION
NUMBER_OF = _aten._local_scalar_dense
CONVERTED = _aten._to_copy
GROUPED_PRODUCT = _aten._grouped_mm
INDEXED_WRITE = _aten._index_put_impl_

# Who manages a weight ------------------------------------------------------------------------------------------------

_REPLICATE = "torch.distributed._composable.replicate_with_fsdp"


def managed_by_fsdp(module: nn.Module) -> bool:
    """Return whether FullyShardedDataParallel or fully_shard manages the module: the mark is meant for the compiler."""
    return bool(vars(module).get("_is_fsdp_managed_module"))


def replicate_is_imported() -> bool:
    """Return whether any module can be managed by torch's replicate.

    It exchanges parameters as fully_shard does, but marks no module below the one it is called on. The function of the
    same name that is built on DDP leaves parameters alone.
    """
    return _REPLICATE in sys.modules


def replicated() -> list[nn.Module]:
    """Return the modules that replicate, once it is imported, was called on."""
    states = sys.modules["torch.distributed._composable_state"]._module_state_mapping
    return [module for module in states if isinstance(module, sys.modules[_REPLICATE].ReplicateModule)]
