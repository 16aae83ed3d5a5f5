"""Operations and bytes moved, operator by operator: what a roofline is made of."""

from collections import Counter
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import flop_registry

from rowsft.compat.torch import GROUPED_PRODUCT, INDEXED_WRITE, TorchDispatchMode, packet_of
from rowsft.measure.flops import BACKWARD, FORWARD, attention_backward_flops, attention_flops
from rowsft.measure.ledger import tensors_in

aten = torch.ops.aten
# Operators that only look at memory in another way, or take some and leave it as it is.
_VIEWS = ("view", "t", "transpose", "permute", "expand", "slice", "select", "unsqueeze", "squeeze", "detach", "alias")
_FREE = (*_VIEWS, "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
# Operators that read, or write, some entries of their first tensor and leave the rest alone.
_GATHER = (aten.index_select, aten.index, aten.embedding)
_SCATTER = (aten.index_copy_, aten.index_put_, INDEXED_WRITE, aten.scatter_)


@dataclass(frozen=True)
class Device:
    """A device by its data sheet: dense operations a second by dtype, and bytes a second of its memory."""

    name: str
    flops: dict[torch.dtype, float]
    bytes_per_second: float


class Costs(TorchDispatchMode):
    """Context manager that enters every operator's floating-point operations (a multiplication and an addition are
    two, as in torch's FlopCounterMode; attention's products are counted on every device) and the bytes that it has to
    read and write if nothing stays in a cache: of a tensor that is indexed, those of the entries that are taken or put.
    """

    def __init__(self):
        super().__init__()
        #: (operations, bytes, dtype) of an operator -> how many times such a one ran.
        self.operators: Counter[tuple[int, int, torch.dtype]] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func is aten.detach.default or func is torch.ops.prim.device.default:
            return out
        packet = packet_of(func)
        if packet.__name__.strip("_") not in _FREE:
            tensors = list(tensors_in((*args, *kwargs.values(), out)))
            if tensors:
                moved = _moved(packet, args, tensors)
                self.operators[_operations(packet, args, kwargs, out), moved, tensors[0].dtype] += 1
        return out

    @property
    def flops(self) -> int:
        """Floating-point operations of all operators."""
        return sum(times * flops for (flops, _, _), times in self.operators.items())

    @property
    def bytes_moved(self) -> int:
        """Bytes that all operators read and write."""
        return sum(times * moved for (_, moved, _), times in self.operators.items())

    def seconds(self, device: Device) -> float:
        """The roofline: each operator as fast as arithmetic or memory allows, whichever is slower. A lower bound."""
        fastest = max(device.flops.values())
        return sum(
            times * max(flops / device.flops.get(dtype, fastest), moved / device.bytes_per_second)
            for (flops, moved, dtype), times in self.operators.items()
        )


def _moved(packet, args, tensors: list[torch.Tensor]) -> int:
    # Of an expanded tensor what it lies in, however often it is read.
    sizes = {id(tensor): min(tensor.nbytes, tensor.untyped_storage().nbytes()) for tensor in tensors}
    if packet in _GATHER:
        # As much is read as comes out, the last of the tensors.
        sizes[id(args[0])] = tensors[-1].nbytes
    elif packet in _SCATTER:
        # As much is written as is put in.
        sizes[id(args[0])] = sizes[id(args[3 if packet in (aten.index_copy_, aten.scatter_) else 2])]
    return sum(sizes.values())


def _operations(packet, args, kwargs, out) -> int:
    if packet in FORWARD:
        return attention_flops(*(tensor.shape for tensor in args[:3]))
    if packet in BACKWARD:
        return attention_backward_flops(*(tensor.shape for tensor in args[1:4]))
    if packet is GROUPED_PRODUCT:
        # Of a mixture of experts: every token's row meets one expert's matrix, or its gradient.
        left, right = args[:2]
        groups = len(left) if left.ndim == right.ndim == 3 else 1
        return 2 * groups * left.shape[-2] * left.shape[-1] * right.shape[-1]
    count = flop_registry.get(packet)
    return count(*args, **kwargs, out_val=out) if count else 0
