"""Run a model in 32 bit with some weights replaced, one module at a time and without writing into it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from rowsft.compat.torch import parameters_of
from rowsft.importance.reduction import wide


@contextmanager
def widened(model: nn.Module, replacement: Callable[[nn.Module], Tensor | None]) -> Iterator[None]:
    """Inside, forward passes compute in 32 bit (64 where the model does), with the weights that `replacement` gives.

    replacement(module) is asked at every call of a module that has parameters of its own: a tensor stands in for its
    `weight` during that call, None keeps it. A 16-bit parameter gives way to a 32-bit copy during the call of its
    module, so only one module's copy exists at a time; an embedding's result is widened instead. No parameter is
    written, and all are back in their places after each call, also when it raises.
    """
    handles = []
    kept: dict[nn.Module, dict[str, nn.Parameter | None]] = {}

    def before(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        # Asked first: a weight that is replaced needs no copy beside its replacement. torch takes tensors, too.
        replaced = replacement(module)
        kept[module] = dict(parameters_of(module))
        for name, parameter in kept[module].items():
            if name == "weight" and replaced is not None:
                parameters_of(module)[name] = cast(nn.Parameter, replaced)
            elif parameter is not None:
                parameters_of(module)[name] = cast(nn.Parameter, _wider(parameter.detach()))
        return tuple(map(_wider, args)), {key: _wider(value) for key, value in kwargs.items()}

    def after(module: nn.Module, args: tuple, output: object) -> None:
        parameters_of(module).update(kept.pop(module, {}))

    def widen_result(module: nn.Module, args: tuple, output: object) -> object:
        return _wider(output)

    try:
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                handles.append(module.register_forward_hook(widen_result))
            elif any(parameter is not None for parameter in parameters_of(module).values()):
                handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
                handles.append(module.register_forward_hook(after, always_call=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, parameters in kept.items():
            parameters_of(module).update(parameters)


def _wider(value: object) -> object:
    if isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16):
        return value.to(wide(value.dtype))
    return value
