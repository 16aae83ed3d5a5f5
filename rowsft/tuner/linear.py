"""A linear layer whose chosen rows and columns are trained: forward, and merging."""

from __future__ import annotations

import warnings

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from rowsft.errors import UserError

from .compiled import as_autocast, forget_layer, written_linear
from .config import RowSFTConfig
from .ids import Chosen
from .layer import RowSFTLayer
from .patch import Patch
from .update import Update


class Linear(RowSFTLayer):
    """Row-SFT on `nn.Linear` (and its quantised subclasses) or transformers' `Conv1D`."""

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        config: RowSFTConfig,
        layer_name: str,
        ids: Chosen,
        shared: bool,
    ):
        super().__init__(base_layer, layer_name, shared)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, ids, config)

    def forward(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """x (..., d_in) -> (..., d_out)."""
        if self.merged and self.disable_adapters:
            self.unmerge()
        if self.merged:
            return self.base_layer(x, *args, **kwargs)
        names = self._running()
        if self._takes_second_product(names, x):
            return self._add_updates(self._base_output([], x, *args, **kwargs), x, names)
        return self._attach_gradients(self._base_output(names, x, *args, **kwargs), x, names)

    def _running(self) -> list[str]:
        """The adapters that take part in a forward."""
        return [] if self.disable_adapters else self._adapters(self.active_adapters)

    def _takes_second_product(self, names: list[str], x: torch.Tensor) -> bool:
        drops_inputs = self.training and any(isinstance(self.row_sft_dropout[name], nn.Dropout) for name in names)
        # An offloaded weight is brought back when the base layer runs, and what was written before would be lost.
        offloaded = self.get_base_layer().weight.is_meta and not x.is_meta
        return bool(names) and (drops_inputs or offloaded or not self._is_writable())

    def _base_output(self, names: list[str], x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """The base layer's output with the named adapters' updates in its weight."""
        if torch.compiler.is_compiling() and self._suits_operator():
            return written_linear(as_autocast(x), self.base_layer.weight, isinstance(self.base_layer, Conv1D))
        if self._patch is not None and self._graphs and not self._patch.fits(self._updates(names)):
            # An earlier forward still waits for its backward and has saved the weight as it is now, as when a reference
            # model is run by disabling the adapters between a policy's forward and its backward.
            return functional_call(self.base_layer, self._private_copy(names), (x, *args), kwargs)
        self._write(names)
        return self.base_layer(x, *args, **kwargs)

    def _suits_operator(self) -> bool:
        """Whether the operator can stand for the base layer: a plain frozen one that is found by its weight."""
        return (
            type(self.base_layer) in (nn.Linear, Conv1D)
            and not self.shared
            and self._is_plain()
            and not any(tensor.requires_grad for tensor in self._tensors().values())
        )

    def operator_output(self, x: torch.Tensor) -> torch.Tensor:
        """What `rowsft::written_linear` computes: the base layer's output with the active updates in its weight."""
        names = self._running()
        self._mark_outdated()
        # An input in another dtype than the weight comes from autocast, which is off in here.
        with torch.autocast(x.device.type, dtype=x.dtype, enabled=x.dtype != self.base_layer.weight.dtype):
            return self._base_output([] if self._takes_second_product(names, x) else names, x)

    def _attach_gradients(self, y: torch.Tensor, x: torch.Tensor, names: list[str]) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return y
        for update in self._updates(names):
            if not update.trains:
                continue
            if torch.compiler.is_compiling():
                y = update.with_gradient(y, x)
            else:
                y = update.with_gradient(y, x, self._mark_outdated)
                self._graphs.add(y.grad_fn)
        return y

    def _add_updates(self, y: torch.Tensor, x: torch.Tensor, names: list[str]) -> torch.Tensor:
        for name, update in zip(names, self._updates(names), strict=True):
            if any(value.is_meta for value in self._held(name)) and not x.is_meta:
                raise UserError(
                    f"the values of adapter {name!r} in layer {self.layer_name} are offloaded (on the meta device); "
                    "keep target layers on a device: leave them out of the CPU and disk offload of device_map"
                )
            y = update.added_to(y, self.row_sft_dropout[name](x))
        return y

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Leave the adapters' updates in the base weight until `unmerge`, which puts the originals back bit for bit.

        Args:
            safe_merge: refuse, with a ValueError and nothing changed, when a merged entry would not be finite.
            adapter_names: the adapters to merge; the active ones by default.

        Raises:
            UserError: when the base weight is quantised, sharded or on the meta device.
        """
        names = self._adapters(check_adapters_to_merge(self, adapter_names))
        if not names:
            return
        if not self._is_plain():
            weight = self.get_base_layer().weight
            raise UserError(
                f"cannot merge into layer {self.layer_name}: its weight is {type(weight).__name__} of {weight.dtype} "
                f"on {weight.device}; load the base model unquantised, on one device, and merge there"
            )
        names = [*self.merged_adapters, *names]
        if safe_merge:
            self._check_finite(names)
        if self.shared and not self._tied:
            self._untie()
        self._mark_outdated()
        self._write(names)
        self.merged_adapters = names

    def _check_finite(self, names: list[str]) -> None:
        updates = self._updates(names)
        for tensor in self._merged_values(updates):
            if tensor is not None and not torch.isfinite(tensor).all():
                raise ValueError(f"layer {self.layer_name} would not be finite after merging adapters {names}")

    def _merged_values(self, updates: list[Update]):
        private = self._private_copy([]) if self._patch is not None else self._tensors()
        return Patch(self.get_base_layer(), private, updates).values(updates)

    def _untie(self) -> None:
        """Give this layer its own tensors while merged: other modules share them and must not see the updates."""
        self._tied = self._tensors()
        for name, tensor in self._tied.items():
            setattr(self.get_base_layer(), name, nn.Parameter(tensor.detach().clone(), requires_grad=False))

    def unmerge(self) -> None:
        """Put the originals back, bit for bit."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        self.restore()
        self.merged_adapters = []
        for name, tensor in self._tied.items():
            setattr(self.get_base_layer(), name, tensor)
        self._tied = {}

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """The plain base layer, merged or as it was; called by `merge_and_unload` and `unload`."""
        if merge:
            self.merge(safe_merge=safe_merge, adapter_names=adapter_names)
        elif self.merged:
            self.unmerge()
        if not self.merged:
            self.restore()
        forget_layer(self)
        return self.get_base_layer()

    def __repr__(self) -> str:
        return "row_sft." + super().__repr__()
