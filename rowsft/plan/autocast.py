"""Autocast without data: the meta device has none, so the model is made of tensors that claim to be on a CPU.

torch chooses what autocast converts by the device that a tensor says it is on. Its fake tensors are meta tensors that
say so; they go through the same conversions, and the same cache of converted weights, as real ones. A GPU's list of
operators differs from a CPU's in those that it keeps in 32 bit: they are added where a GPU is planned.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from rowsft.compat.accelerate import convert_outputs_to_fp32
from rowsft.compat.torch import (
    FakeTensor,
    FakeTensorMode,
    below_autocast,
    buffers_of,
    parameters_of,
    take_back,
    unset_fake_temporarily,
)
from rowsft.compat.transformers import import_utils
from rowsft.plan.patching import patched

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_NARROW = tuple(DTYPES.values())
# Operators on large tensors that CUDA's autocast computes in 32 bit and a CPU's does not.
_WIDENED_INPUTS = ("layer_norm", "group_norm", "logsumexp")
_WIDENED_OUTPUTS = ("softmax.int", "log_softmax.int")


def autocasting(model: nn.Module, kind: str) -> nn.Module:
    """`model`, on the meta device, as the trainer makes it ready for autocast of `kind` (bf16 or fp16); in place."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    # Tied weights stay one tensor.
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for tensors in (parameters_of(module), buffers_of(module)):
            for name, tensor in tensors.items():
                if tensor is not None and tensor.is_meta:
                    made.setdefault(id(tensor), _claimed(tensor, mode))
                    tensors[name] = made[id(tensor)]
    forward = model.forward

    def converted(*args, **kwargs):
        with autocast(kind):
            return forward(*args, **kwargs)

    model.forward = convert_outputs_to_fp32(converted)
    return model


def autocast(kind: str | None):
    """The context in which tensors that claim to be on a CPU are converted; an empty one for None."""
    return torch.autocast("cpu", dtype=DTYPES[kind]) if kind else nullcontext()


def claimed_alike(tensor: Tensor, model: nn.Module) -> Tensor:
    """A meta tensor on the device that the model's own tensors claim to be on."""
    mode = _mode_of(model)
    return tensor if mode is None else _claimed(tensor, mode)


@contextmanager
def fake_device(model: nn.Module, gpu: bool) -> Iterator[None]:
    """The block may compute with `model`, whatever device its tensors claim to be on, as a GPU or a CPU does."""
    mode = _mode_of(model)
    if mode is None:
        yield
        return
    with (
        # transformers takes fake tensors for a trace, in which it spells masks out.
        patched(import_utils, is_fake_tensor=lambda _: False),
        patched(FakeTensor, tolist=lambda self: _zeros(self).tolist(), numpy=lambda self: _zeros(self).numpy()),
        _widening() if gpu else nullcontext(),
        mode,
    ):
        yield


@contextmanager
def _widening() -> Iterator[None]:
    library = torch.library.Library("aten", "IMPL")
    for name in (*_WIDENED_INPUTS, *_WIDENED_OUTPUTS):
        packet, _, overload = name.partition(".")
        operator = getattr(getattr(torch.ops.aten, packet), overload or "default")
        library.impl(name, _widened(operator, name in _WIDENED_INPUTS), "AutocastCPU")
    try:
        yield
    finally:
        take_back(library)


def _widened(operator: Callable, inputs: bool) -> Callable:
    def wide(value):
        return value.float() if isinstance(value, Tensor) and value.dtype in _NARROW else value

    def call(*args, **kwargs):
        with below_autocast():
            if inputs:
                return operator(*map(wide, args), **{name: wide(value) for name, value in kwargs.items()})
            given = kwargs.pop("dtype", None) or (args[2] if len(args) > 2 else None)
            return operator(*args[:2], dtype=given or torch.float32, **kwargs)

    return call


def _mode_of(model: nn.Module) -> FakeTensorMode | None:
    first = next(model.parameters())
    return first.fake_mode if isinstance(first, FakeTensor) else None


def _claimed(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    fake = FakeTensor(mode, tensor.detach(), torch.device("cpu"))
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(fake, requires_grad=tensor.requires_grad)
    return fake


def _zeros(tensor: Tensor) -> Tensor:
    """Results decide nothing: zeros stand for them."""
    with unset_fake_temporarily():
        return torch.zeros(tensor.shape, dtype=tensor.dtype)
