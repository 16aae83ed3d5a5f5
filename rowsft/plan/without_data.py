"""Real model code on the meta device, with the kernels that a CPU or a GPU would run.

Sizes are all that the meta device has. Left alone it takes other kernels than real devices do (attention spelled out,
where they have fused ones), and code that looks at a value fails; both are seen to here.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional

from rowsft.compat.torch import (
    CONVERTED,
    CPU_ATTENTION,
    EFFICIENT_ATTENTION,
    FLASH_ATTENTION,
    GROUPED_PRODUCT,
    NUMBER_OF,
    FakeTensor,
    TorchDispatchMode,
)
from rowsft.layers.matrix import has_no_data
from rowsft.plan.memo import Memo
from rowsft.plan.patching import patched

aten = torch.ops.aten
_HALF = (torch.bfloat16, torch.float16)
# The longest head that the fused attention kernels of a GPU take.
_LONGEST_HEAD = 256


class UnknownWithoutData(Exception):
    """Something depends on values, which nobody has before the run."""


@contextmanager
def without_data(gpu: bool, padded: bool, results: bool = False) -> Iterator[None]:
    """The block runs on meta tensors as a GPU (or a CPU) would run it, on batches with padding or without.

    results: what is taken off the device is a result that decides nothing: zeros stand for it.
    Raises UnknownWithoutData where the code goes by other values than whether a mask has padding.
    """
    with _kernels(gpu), _Answers(gpu, padded, results):
        yield


@contextmanager
def _kernels(gpu: bool) -> Iterator[None]:
    """Attention and dropout as the fused operators that the device would run, and a CPU's random state.

    The functions are patched: a TorchFunctionMode would be off inside a backward pass, where checkpointing runs the
    model's code again.
    """
    spelled_out = functional.scaled_dot_product_attention

    def attention(query: Tensor, *args, **kwargs) -> Tensor:
        fused = _fused_attention(gpu, query, *args, **kwargs) if has_no_data(query) else None
        return spelled_out(query, *args, **kwargs) if fused is None else fused

    others = {"dropout": _fused_dropout} if gpu else {}
    with patched(functional, scaled_dot_product_attention=attention, **others), _random_state(gpu):
        yield


def _random_state(gpu: bool) -> AbstractContextManager:
    """Checkpointing keeps the random state aside while it computes again, which torch leaves out on the meta device.

    A GPU's plan leaves it out, too: that of the host takes none of its memory.
    """
    fork = torch.random.fork_rng

    def forked(devices=None, enabled=True, device_type=None):
        return fork([] if device_type == "meta" else devices, enabled, device_type="cpu")

    return nullcontext() if gpu else patched(torch.random, fork_rng=forked)


class _Answers(TorchDispatchMode):
    """Whether a mask is full, and whether a loss is finite, is answered; any other look at a value is refused."""

    def __init__(self, gpu: bool, padded: bool, results: bool):
        super().__init__()
        self.gpu, self.padded, self.results = gpu, padded, results
        self.memo = Memo()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device
        if func is NUMBER_OF.default and has_no_data(args[0]):
            if args[0].dtype is torch.bool:
                return not self.padded
            if args[0].is_floating_point():
                # A loss, looked at to see that it is finite.
                return 1.0
            raise UnknownWithoutData("the code reads a count or an index from a tensor")
        if func is aten.index.Tensor and has_no_data(args[0]) and _is_mask(args[1]):
            # As many as there can be: no token is padding.
            (mask,) = args[1]
            return args[0].new_empty((mask.numel(), *args[0].shape[mask.ndim :]))
        if self.results and func is CONVERTED.default and has_no_data(args[0]) and _to_host(kwargs):
            return torch.zeros(args[0].shape, dtype=(kwargs or {}).get("dtype") or args[0].dtype)
        if func is GROUPED_PRODUCT.default and has_no_data(args[0]) and args[0].dtype is not torch.bfloat16:
            # torch's kernel without data knows bfloat16 alone; the shapes are the same.
            alike = func(*(tensor.bfloat16() for tensor in args[:2]), *args[2:], **(kwargs or {}))
            return torch.empty_like(alike, dtype=args[0].dtype)
        if func is aten.equal.default and has_no_data(args[0]):
            # Scoring sees to it that buffers are as they were.
            return True
        kwargs = kwargs or {}
        return self.memo(func, args, kwargs, lambda: self._computed(func, args, kwargs))

    def _computed(self, func, args: tuple, kwargs: dict):
        out = func(*args, **kwargs)
        if func is aten.native_layer_norm.default and has_no_data(args[0]) and not self.gpu:
            return out[0], *_statistics_of_a_cpu(args, out[1:])
        return out


def _statistics_of_a_cpu(given: tuple, statistics: tuple[Tensor, ...]) -> list[Tensor]:
    """A normalisation's means and deviations in the dtype of its parameters; without data they always have 32 bit."""
    inputs, _, weight, *_ = given
    kind = (inputs if weight is None else weight).dtype
    return [each.to(kind) for each in statistics]


def _to_host(options: dict | None) -> bool:
    device = (options or {}).get("device")
    return device is not None and torch.device(device).type == "cpu"


def _is_mask(indices: list) -> bool:
    return len(indices) == 1 and indices[0] is not None and indices[0].dtype is torch.bool


def _fused_attention(
    gpu: bool,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    """What torch's own choice comes to: the fused operator's output, or None where attention is spelled out."""
    if not query.is_meta and torch.is_autocast_enabled("cpu"):
        kind = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(kind), key.to(kind), value.to(kind)
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.to(kind)
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        additive = torch.zeros_like(attn_mask, dtype=query.dtype)
        attn_mask = additive.masked_fill_(attn_mask.logical_not(), float("-inf"))
    heads = query.shape[-3], key.shape[-3]
    if not gpu:
        if dropout_p or query.shape[-1] != value.shape[-1] or (heads[0] != heads[1] and not enable_gqa):
            return None
        return CPU_ATTENTION(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
    if attn_mask is None and query.dtype in _HALF and query.shape[-1] == value.shape[-1] <= _LONGEST_HEAD:
        return FLASH_ATTENTION(query, key, value, dropout_p, is_causal, scale=scale)[0]
    if heads[0] != heads[1]:
        return None
    if attn_mask is not None:
        attn_mask = attn_mask.expand(query.shape[0], heads[0], query.shape[-2], key.shape[-2])
    return EFFICIENT_ATTENTION(query, key, value, attn_mask, query.requires_grad, dropout_p, is_causal, scale=scale)[0]


def _fused_dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(input, p, True)[0] if training and p else input
