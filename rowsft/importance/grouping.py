"""How many layers one pass may serve, so that scoring's peak stays below that of a row step that keeps its inputs.

That step, with `recompute_inputs` off (LoRA's is alike), backpropagates through the frozen network and keeps the input
of every target layer for it. A pass of a metric does the same for its group of layers alone, so what the other layers'
inputs would have taken is free for accumulated gradients and for the one gradient on its way. What an input costs is
measured in one forward pass: layers that read the same tensor share it, and one that the network keeps anyway (as
attention keeps its output) costs nothing. Nor does one that is still in use when the last layer runs, as a residual is:
there, where a step's forward peaks, the frozen network holds it too.

The bound: a layer stands alone where it does not fit with another, so a pass needs at least the accumulators and the
gradient of one layer. Only where those alone exceed all kept inputs (a batch of fewer tokens than a layer is wide) can
scoring's peak exceed the step's. A step that computes inputs again keeps next to nothing beside the frozen network:
scoring, which needs those bytes at least, may peak above that one, and comes closest with `group_bytes` 0.

Under gradient checkpointing (`rowsft.importance.recomputing`) a step keeps the target layers' inputs of one block at a
time, and so does a pass. What a pass may hold is then what the step holds besides the network, its trained weights with
their optimizer state (`Context.step_bytes`), and one block's inputs; the layers of one block go together in any case,
for passes go through the whole network however few layers they serve.
"""

import math
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rowsft.batch import device_of, largest_batch, on_device
from rowsft.compat.torch import storage_id
from rowsft.errors import UserError
from rowsft.importance.recomputing import at_once, recomputed_blocks
from rowsft.importance.reduction import block_bytes, stored_shape, wide
from rowsft.importance.registry import Context
from rowsft.importance.untouched import untouched
from rowsft.layers.matrix import LinearLayer, layer_shape
from rowsft.layers.quantised import is_packed

#: Layer name -> {a number for each tensor that its calls keep: bytes}.
Kept = dict[str, dict[int, int]]


@dataclass(frozen=True)
class Pass:
    """What a metric's pass over a group holds. accumulators: wide tensors per weight. gradients: whether autograd
    forms the weight's gradient. share: of the largest batch that goes through at once."""

    accumulators: int
    gradients: bool = True
    share: float = 1.0


def groups_of(layers: Mapping[str, LinearLayer], context: Context, holds: Pass) -> list[dict[str, LinearLayer]]:
    """Return consecutive layers that one pass may serve together within `context.group_bytes`, in their order.

    None takes all that a row step keeps (`kept_bytes`) on the largest calibration batch where it keeps its inputs. A
    layer that does not fit with others stands alone.
    """
    kept = kept_inputs(layers, context)
    blocks = _blocks(layers, context.model)
    room = _room(layers, context, holds, kept, blocks) if context.group_bytes is None else context.group_bytes
    room -= sum(_score_bytes(layer) for layer in layers.values())
    groups: list[dict[str, LinearLayer]] = []
    for name, layer in layers.items():
        if not groups or _pass_bytes({**groups[-1], name: layer}, kept, holds, blocks) > room:
            groups.append({})
        groups[-1][name] = layer
    return groups


def _room(layers: Mapping[str, LinearLayer], context: Context, holds: Pass, kept: Kept, blocks: dict[str, int]) -> int:
    """Bytes that a pass may hold, the scores of all layers among them."""
    if not blocks:
        return kept_bytes(kept)
    scores = sum(_score_bytes(layer) for layer in layers.values())
    alone = max(_pass_bytes(group, kept, holds, blocks) for group in _by_block(layers, blocks))
    return max(context.step_bytes + max(map(kept_bytes, _split(kept, blocks))), alone + scores)


def _blocks(layers: Mapping[str, LinearLayer], model: nn.Module) -> dict[str, int]:
    """Name of every layer -> which recomputed block it lies in, -1 outside of all; empty where none is recomputed."""
    numbers = {part: number for number, block in enumerate(recomputed_blocks(model)) for part in block.modules()}
    return {name: numbers.get(layer, -1) for name, layer in layers.items()} if numbers else {}


def _by_block(layers: Mapping[str, LinearLayer], blocks: dict[str, int]) -> list[dict[str, LinearLayer]]:
    by_block: dict[int, dict[str, LinearLayer]] = {}
    for name, layer in layers.items():
        by_block.setdefault(blocks[name], {})[name] = layer
    return list(by_block.values())


def _split(kept: Kept, blocks: dict[str, int]) -> list[Kept]:
    """What is kept at a time: block by block where blocks are recomputed."""
    if not blocks:
        return [kept]
    by_block: dict[int, Kept] = {}
    for name, tensors in kept.items():
        by_block.setdefault(blocks[name], {})[name] = tensors
    return list(by_block.values())


def kept_bytes(kept: Kept) -> int:
    """Return the bytes of all distinct tensors kept."""
    return sum({number: size for tensors in kept.values() for number, size in tensors.items()}.values())


def kept_inputs(layers: Mapping[str, LinearLayer], context: Context) -> Kept:
    """Return the inputs of `layers` that a row step keeps on top of the frozen network's own, on the largest batch.

    One forward pass that keeps nothing itself. The model is given back untouched. Raises UserError where the loss reads
    none of the layers.
    """
    numbers = _Numbers()
    inputs: Kept = {name: {} for name in layers}
    saved: set[int] = set()
    in_use: set[int] = set()
    names = {layer: name for name, layer in layers.items()}
    anchor = torch.zeros((), requires_grad=True)

    def note(layer: LinearLayer, args: tuple, kwargs: Mapping, output: Tensor) -> Tensor:
        tensor = layer_input(args, kwargs)
        inputs[names[layer]][numbers[tensor]] = tensor.untyped_storage().nbytes()
        in_use.clear()
        in_use.update(numbers.live())
        # The graph begins at the first target layer, as it does in training.
        return output if output.requires_grad else _Begin.apply(output, anchor)

    def count(tensor: Tensor) -> int:
        saved.add(numbers[tensor])
        return numbers[tensor]

    # Nothing is kept, and no backward asks for it.
    counted = torch.autograd.graph.saved_tensors_hooks(count, lambda number: number)
    with untouched(context.model), at_once(context.model), hooked(layers, note), counted:
        output = context.model(**on_device(largest_batch(context.calibration), device_of(context.model)))
    loss = getattr(output, "loss", None)
    if loss is not None and not loss.requires_grad:
        # Every score would be 0, and the lowest ids would be chosen.
        raise UserError(
            f"the loss of {type(context.model).__name__} has no gradient with respect to any of the {len(layers)} "
            "target layers; target layers that it reads, and see that its forward allows gradients"
        )
    return {
        name: {number: size for number, size in tensors.items() if number not in saved | in_use}
        for name, tensors in inputs.items()
    }


def layer_input(args: tuple, kwargs: Mapping) -> Tensor:
    """Return the one input of a linear layer's call."""
    return args[0] if args else next(iter(kwargs.values()))


@contextmanager
def hooked(layers: Mapping[str, LinearLayer], hook) -> Iterator[None]:
    """Call hook(layer, args, kwargs, output) after every forward of `layers`; what it returns replaces the output."""
    handles = [layer.register_forward_hook(hook, with_kwargs=True) for layer in dict.fromkeys(layers.values())]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Begin(torch.autograd.Function):
    """The layer's output unchanged, with a gradient for `anchor`'s sake.

    No view, neither of a leaf nor of the output: models may work in place on what a layer gives them.
    """

    @staticmethod
    def forward(ctx, output: Tensor, anchor: Tensor) -> Tensor:
        return output.detach()

    @staticmethod
    def backward(ctx, output_gradient: Tensor):
        return output_gradient, None


class _Numbers:
    """A number for every storage, which is not given again once the storage is gone: its address may be."""

    def __init__(self):
        self._live: dict[int, int] = {}
        self._next = 0

    def live(self) -> list[int]:
        """Return the numbers of the storages that still exist."""
        return list(self._live.values())

    def __getitem__(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        address = storage_id(storage)
        if address not in self._live:
            self._live[address] = self._next
            self._next += 1
            weakref.finalize(storage, self._live.pop, address, None)
        return self._live[address]


def _pass_bytes(group: Mapping[str, LinearLayer], kept: Kept, holds: Pass, blocks: dict[str, int]) -> int:
    owners = {layer.weight: layer for layer in group.values()}.values()
    accumulated = sum(_wide_bytes(layer) for layer in owners) * holds.accumulators
    on_its_way = max((_gradient_bytes(layer) if holds.gradients else 0) + 2 * block_bytes(layer) for layer in owners)
    inputs = max(map(kept_bytes, _split({name: kept[name] for name in group}, blocks))) * holds.share
    return int(accumulated + on_its_way + inputs)


def _wide_bytes(layer: LinearLayer) -> int:
    return math.prod(stored_shape(layer)) * wide(layer.weight.dtype).itemsize


def _gradient_bytes(layer: LinearLayer) -> int:
    """Those of the weight's gradient; with a packed weight goes what it stands for."""
    weight = layer.weight
    return 2 * _wide_bytes(layer) if is_packed(weight) else weight.numel() * weight.element_size()


def _score_bytes(layer: LinearLayer) -> int:
    return sum(layer_shape(layer)) * wide(layer.weight.dtype).itemsize
