"""PyTorch's FSDP2 for a whole model: which modules are units, and whole tensors out of sharded ones.

Used directly: accelerate, and with it transformers' Trainer, shard on GPUs alone and copy the model on CPUs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from rowsft.compat.torch import parameters_of
from rowsft.errors import UserError
from rowsft.layers.lists import outermost_lists
from rowsft.layers.quantised import is_packed
from rowsft.runner.ranks import Ranks


def shard(model: nn.Module, ranks: Ranks, device: torch.device) -> None:
    """Leave each process a part of every parameter, on its device: a unit for each block, one for what is outside.

    Raises UserError for a model with quantised weights.
    """
    for name, parameter in model.named_parameters():
        if is_packed(parameter):
            raise UserError(
                f"trainer.strategy=fsdp: {name} holds {parameter.dtype} values (quantised), which are not sharded; use "
                "trainer=ddp, or a base model that is not quantised"
            )
    mesh = init_device_mesh(device.type, (ranks.size,))
    for block in blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return the modules that stand in the outermost lists of a model, as its layers do, and its input embeddings.

    What is in none of them stays whole from a forward's beginning to the end of its backward. Left out are those that
    share a parameter with anything outside, which no two units may hold.
    """
    found = [item for items in outermost_lists(model) for item in items]
    embeddings_of: Any = getattr(model, "get_input_embeddings", None)
    embeddings = embeddings_of() if embeddings_of is not None else None
    if isinstance(embeddings, nn.Module) and not any(part is embeddings for b in found for part in b.modules()):
        found.append(embeddings)
    holders: dict[int, set[int]] = {}
    owner = {id(module): number for number, block in enumerate(found) for module in block.modules()}
    for module in model.modules():
        for parameter in parameters_of(module).values():
            if parameter is not None:
                holders.setdefault(id(parameter), set()).add(owner.get(id(module), -1))
    shared = {number for numbers in holders.values() if len(numbers) > 1 for number in numbers}
    kept = (block for number, block in enumerate(found) if number not in shared)
    return [block for block in kept if any(True for _ in block.parameters())]


def check_wrapped(model: nn.Module, ranks: Ranks) -> None:
    """Raise RuntimeError where what is trained is not wrapped as the strategy says: libraries fall back silently."""
    if ranks.strategy is None:
        return
    if ranks.is_sharded:
        whole = [name for name, p in model.named_parameters() if not isinstance(p, DTensor)]
        wrong = not isinstance(model, FSDPModule) or bool(whole)
        expected = f"FSDPModule with sharded parameters (whole: {', '.join(whole[:3]) or 'none'})"
    else:
        wrong, expected = not isinstance(model, DistributedDataParallel), "DistributedDataParallel"
    if wrong:
        raise RuntimeError(
            f"trainer.strategy={ranks.strategy}: what trains is a {type(model).__name__}, expected {expected}; its "
            "processes would not train together: run it in one process, and report this"
        )


def reducer_bytes(model: nn.Module) -> int:
    """Return what DistributedDataParallel holds to exchange gradients: a copy of each; 0 for any other model."""
    if not isinstance(model, DistributedDataParallel):
        return 0
    return sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor with all of its values, which every process of a sharded one takes part in."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: torch.Tensor, pattern: torch.Tensor) -> torch.Tensor:
    """Return a whole tensor, the same in every process, spread as `pattern` is."""
    if not isinstance(pattern, DTensor) or isinstance(tensor, DTensor) or tensor.shape != pattern.shape:
        return tensor
    return distribute_tensor(tensor.to(pattern.device), pattern.device_mesh, pattern.placements)


@contextmanager
def whole_trained(model: nn.Module, keep: bool) -> Iterator[None]:
    """Inside the block the trained parameters of a sharded model are whole, on the CPU; every process takes part.

    Whoever reads them there, as `state_dict` or by name, gets what one process would have: PEFT would otherwise save a
    rank's own part (huggingface/accelerate#4206). keep: false where this process has no use for them, and keeps its
    parts.
    """
    if not isinstance(model, FSDPModule):
        yield
        return
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # What a forward has left whole would be put back by state_dict, over what is put in place here.
            module.reshard()
    places = [
        (module, name, parameter)
        for module in model.modules()
        for name, parameter in parameters_of(module).items()
        if isinstance(parameter, DTensor) and parameter.requires_grad
    ]
    wholes: dict[int, nn.Parameter] = {}
    # Tied ones once, in every process: all gather alike.
    for parameter in {id(parameter): parameter for _, _, parameter in places}.values():
        values = whole(parameter.detach())
        if keep:
            wholes[id(parameter)] = nn.Parameter(values.cpu())
    try:
        for module, name, parameter in places if keep else ():
            parameters_of(module)[name] = wholes[id(parameter)]
        yield
    finally:
        for module, name, parameter in places:
            parameters_of(module)[name] = parameter
