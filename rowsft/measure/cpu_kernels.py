"""What a CPU's kernels hold besides what operators give: conversions, numbers in products, random states."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce

import torch
from torch import Tensor

#: A number in a product, kept for the backward pass as a tensor that no operator makes.
NUMBER_BYTES = 8
_KEEPS_NUMBER = (torch.ops.aten.mul.Tensor, torch.ops.aten.div.Tensor)


def converted_bytes(func, args: Sequence) -> list[int]:
    """Return the sizes of what an elementwise operator converts to the common dtype, for as long as it runs."""
    if torch.Tag.pointwise not in func.tags:
        return []
    tensors = [argument for argument in args if isinstance(argument, Tensor) and argument.ndim]
    if len({tensor.dtype for tensor in tensors}) < 2:
        return []
    common = reduce(torch.promote_types, [tensor.dtype for tensor in tensors])
    return [tensor.numel() * common.itemsize for tensor in tensors if tensor.dtype != common]


def keeps_number(func, args: Sequence) -> bool:
    """Return whether the operator is a product with a number, which is kept for its backward pass."""
    return func in _KEEPS_NUMBER and not isinstance(args[1], Tensor)


@contextmanager
def random_states_entered(enter: Callable[[Tensor], None]) -> Iterator[None]:
    """Call `enter` with every random state that is asked for: checkpointing keeps one for each block."""
    get_state = torch.get_rng_state

    def entered() -> Tensor:
        state = get_state()
        enter(state)
        return state

    torch.get_rng_state = entered
    try:
        yield
    finally:
        torch.get_rng_state = get_state
