"""What an operator makes of tensors without data, worked out once for equal shapes.

torch works shapes out in Python, operator by operator, at a hundred times the cost of allocating nothing. A network's
blocks are alike: from the second one on every operator has been seen, and what it gave is made again.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rowsft.compat.torch import (
    FakeTensor,
    FakeTensorMode,
    in_kernel_invocation_manager,
    schema_of,
    storage_id,
    without_dispatch,
)

_PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)
_WRITTEN = "the first argument, written to"


class _Unknown(Exception):
    """An argument that cannot be told from others."""


class _Made(NamedTuple):
    """A new tensor, or a view of the first argument from `offset` on; `claimed`: the device that it says it is on, or
    None for the meta device."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    claimed: torch.device | None
    offset: int | None = None


class Memo:
    """Results of operators by what they were given; only of those that make new tensors, or write to their first."""

    def __init__(self):
        self._results: dict[tuple, Any] = {}
        self._kinds: dict[Any, str | None] = {}

    def __call__(self, func, args: tuple, kwargs: dict, compute: Callable[[], Any]) -> Any:
        """What `compute()` would give: `func` of tensors without data."""
        kind = self._kind(func)
        first = next(_tensors(args), None)
        # A view on the meta device costs less than to look it up.
        if kind is None or first is None or (kind == "view" and not isinstance(first, FakeTensor)):
            return compute()
        try:
            key = func, _key(args), _key(tuple(kwargs.items())) if kwargs else ()
        except _Unknown:
            return compute()
        known = self._results.get(key)
        if known is _WRITTEN:
            return args[0]
        if known is not None:
            return _again(known, first)
        out = compute()
        meta = _meta_of(out, args, kind, key)
        if meta is not None:
            self._results[key] = meta
        return out

    def _kind(self, func) -> str | None:
        if func not in self._kinds:
            self._kinds[func] = _kind_of(schema_of(func))
        return self._kinds[func]


def _kind_of(schema) -> str | None:
    """new: every result is a tensor of its own, as far as the schema says; written: the first argument is the result;
    view: the result shares the first argument's memory."""
    aliased = [argument.alias_info is not None for argument in schema.arguments]
    returned = [result.alias_info is not None for result in schema.returns]
    if not any(aliased) and not any(returned):
        return "new"
    if not aliased[0] or any(aliased[1:]) or returned != [True]:
        return None
    return "written" if schema.arguments[0].alias_info.is_write else "view"


def _key(value: Any) -> Any:
    if isinstance(value, FakeTensor):
        # Its device by name: asked for as usual, every mode would be asked.
        return value.shape, value.stride(), value.storage_offset(), value.dtype, value.fake_device
    if isinstance(value, Tensor):
        if value.layout is not torch.strided or not value.is_meta:
            raise _Unknown
        return value.shape, value.stride(), value.storage_offset(), value.dtype
    if isinstance(value, (tuple, list)):
        return tuple(map(_key, value))
    if isinstance(value, _PLAIN):
        # 1, 1.0 and True are equal, and make different tensors.
        return type(value), value
    raise _Unknown


def _meta_of(out: Any, args: tuple, kind: str, key: tuple) -> Any:
    """How to make `out` again; None where it cannot be made of what is known about it."""
    if kind == "written":
        return _WRITTEN if out is args[0] and _key(out) == key[1][0] else None
    if kind == "view":
        alike = isinstance(out, FakeTensor) and _address(out) == _address(args[0])
        return _Made(out.shape, out.stride(), out.dtype, out.fake_device, out.storage_offset()) if alike else None
    given = {_address(tensor) for tensor in _tensors(args)}
    if isinstance(out, (tuple, list)):
        made = [None if item is None else _made(item, given) for item in out]
        return None if False in made else (type(out), made)
    return _made(out, given) or None


def _made(out: Any, given: set[int]) -> Any:
    """The new tensor's makings; False for one that shares memory with what was given, or is no dense tensor."""
    if not isinstance(out, Tensor) or out.layout is not torch.strided or out.storage_offset():
        return False
    claimed = out.fake_device if isinstance(out, FakeTensor) else None
    if (claimed is None and not out.is_meta) or _address(out) in given:
        return False
    extent = 1 + sum((size - 1) * step for size, step in zip(out.shape, out.stride(), strict=True))
    if out.untyped_storage().nbytes() != (extent * out.element_size() if out.numel() else 0):
        return False
    return _Made(out.shape, out.stride(), out.dtype, claimed)


def _again(known: Any, first: Tensor) -> Any:
    if isinstance(known, _Made) and known.offset is not None:
        assert isinstance(first, FakeTensor), "views of other tensors are not kept"
        blank = _blank((0,), (1,), known.dtype)
        with in_kernel_invocation_manager(first.fake_mode):
            blank.set_(first.untyped_storage(), known.offset, known.shape, known.stride)
        return FakeTensor(first.fake_mode, blank, known.claimed)
    mode = getattr(first, "fake_mode", None)
    if isinstance(known, _Made):
        return _one(known, mode)
    kind, items = known
    return kind(None if item is None else _one(item, mode) for item in items)


def _one(made: _Made, mode: FakeTensorMode | None) -> Tensor:
    blank = _blank(made.shape, made.stride, made.dtype)
    return blank if made.claimed is None else FakeTensor(mode, blank, made.claimed)


def _blank(shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    with without_dispatch():
        return torch.empty_strided(shape, stride, dtype=dtype, device="meta")


def _address(tensor: Tensor) -> int:
    return storage_id(tensor.untyped_storage())


def _tensors(args: Any) -> Iterator[Tensor]:
    for value in args:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)
