"""A linear layer whose chosen rows and columns are trained: its forward."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from rowsft.compat.torch import functorch_is_on
from rowsft.errors import UserError
from rowsft.layers.matrix import as_matrix, has_no_data
from rowsft.selection.ids import Chosen

from .autograd import with_gradient
from .base import BaseTensors
from .compiled import as_autocast, written_linear
from .config import RowSFTConfig
from .contents import Claim, contents_of
from .merging import MergeableLayer
from .rebuild import Source, source_of
from .update import Update


class Linear(MergeableLayer):
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
        if self.merged_adapters:
            if not self._disable_adapters:
                return self._merged_output(x, *args, **kwargs)
            self.unmerge()
        active = self._active_adapter
        names = [] if self._disable_adapters else self._adapters([active] if isinstance(active, str) else active)
        if torch.compiler.is_compiling():
            return self._traced_output(names, x, *args, **kwargs)
        if torch.jit.is_tracing():
            # A trace holds the weight itself, and not what is written in it for a time.
            with self.with_originals():
                return self._add_updates(self.base_layer(x, *args, **kwargs), x, names)
        base = self._base()
        # An offloaded weight is brought back when the base layer runs, and what was written before would be lost.
        if self.shared or not base.is_writable or (not base.has_data and base.weight.is_meta and not x.is_meta):
            y = self._original_output(x, *args, **kwargs)
            if base.is_packed and not (functorch_is_on() or (self._may_drop_inputs and self._drops_inputs(names))):
                return self._add_rebuilding(y, x, names)
            return self._add_updates(y, x, names)
        if self._may_drop_inputs and self._drops_inputs(names):
            return self._add_updates(self._base_output(base, [], x, *args, **kwargs), x, names)
        if functorch_is_on():
            # They transform the values, which no weight can hold.
            return self._add_updates(self._original_output(x, *args, **kwargs), x, names)
        return self._base_output(base, self._updates(names), x, *args, **kwargs)

    def _original_output(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """The base layer's output with the originals, without a claim on them."""
        contents = self._contents()
        if contents is None or contents.patch is None:
            return self.base_layer(x, *args, **kwargs)
        return functional_call(self.base_layer, self._private_copy([]), (x, *args), kwargs)

    def _drops_inputs(self, names: list[str]) -> bool:
        return self.training and any(isinstance(self.row_sft_dropout[name], nn.Dropout) for name in names)

    def _base_output(self, base: BaseTensors, updates: list[Update], x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """The base layer's output with the updates in its weight, and their gradients attached."""
        recording = torch.is_grad_enabled()
        trained = [update for update in updates if update.trains] if recording else []
        if not (trained or (recording and x.requires_grad)):
            return self._while_written(base, updates, lambda: self.base_layer(x, *args, **kwargs))
        claim = self._claim(updates, True, base)
        if claim is None:
            # Another graph needs the weight as it is, as when a reference model that is trained too runs with the
            # adapters disabled between a policy's forward and its backward.
            y = functional_call(self.base_layer, self._private_copy(updates), (x, *args), kwargs)
        else:
            try:
                y = self.base_layer(x, *args, **kwargs)
            except BaseException:
                # Not when the traceback is dropped.
                claim.release()
                raise
        # Where nothing here is trained, a node is needed all the same: the graph that leads to x claims the weight.
        # Kept once, an input serves all.
        keeps = any(update.keeps_input and update.delta is not None for update in trained)
        for update in trained or [Update()]:
            y = with_gradient(y, x, update, claim, self._source_of(x, update, keeps))
        return y

    def _while_written(
        self, base: BaseTensors, updates: list[Update], work: Callable[[], torch.Tensor]
    ) -> torch.Tensor:
        """What `work` returns, which runs with the updates in the base weight and records no graph."""
        if not updates and contents_of(base) is None:
            return work()
        claim = self._claim(updates, False, base)
        if claim is not None:
            try:
                return work()
            finally:
                claim.release()
        contents = contents_of(base)
        if contents is None:
            # The collector has dropped them just now.
            return self._while_written(base, updates, work)
        # Graphs wait for something else in the weight, which is put back.
        with contents.suspended():
            patch, tensors = self._patch_for(updates, base), base.tensors
            try:
                if patch is not None:
                    patch.write(tensors, updates)
                return work()
            finally:
                if patch is not None:
                    patch.restore(tensors)

    def _source_of(self, x: torch.Tensor, update: Update, keeps: bool) -> Source | None:
        """Where backward has x from; None: the node keeps it, as `keeps` asks, or does not need it."""
        if update.delta is None or not update.delta.requires_grad:
            return None
        source = "recompute_inputs is off" if keeps else self._why_kept or source_of(x)
        if isinstance(source, Source) and not self._input_checked and x.numel():
            self._input_checked = True
            if not (has_no_data(x) or source.gives(x)):
                source = self._why_kept = "what would be rebuilt is not the input"
        if isinstance(source, Source):
            self.input_source = source.label
            return source.used()
        self.input_source = f"kept: {source}"
        return None

    def _merged_output(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        y = self.base_layer(x, *args, **kwargs)
        if torch.compiler.is_compiling() or functorch_is_on():
            return y
        if not (torch.is_grad_enabled() and x.requires_grad):
            return y
        contents = self._merged().contents
        return with_gradient(y, x, Update(), Claim(contents, contents.patch, contents.updates), None)

    def _traced_output(self, names: list[str], x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """Forward as a compiler traces it, without claims and sources, which no graph can carry.

        The input is the compiler's to keep or to compute again: inductor's partitioner recomputes elementwise operators
        where that saves memory.
        """
        suits_operator = self._is_writable() and type(self.base_layer) in (nn.Linear, Conv1D)
        # A program that is exported runs where the operator, which asks the layer itself, would find none.
        if names and (self._drops_inputs(names) or not suits_operator or torch.compiler.is_exporting()):
            return self._add_updates(self.base_layer(x, *args, **kwargs), x, names)
        if not names:
            return self.base_layer(x, *args, **kwargs)
        updates = self._updates(names)
        values = [value for update in updates for value in update.values]
        transposed = isinstance(self.base_layer, Conv1D)
        y = written_linear(as_autocast(x), self.base_layer.weight, values, transposed, "\n".join(names))
        for update in updates:
            if update.trains:
                y = with_gradient(y, x, update, None, None)
        return y

    def operator_output(self, x: torch.Tensor, names: list[str]) -> torch.Tensor:
        """What `rowsft::written_linear` computes: the base layer's output with the updates in its weight."""
        # An input in another dtype than the weight comes from autocast, which is off in here.
        mixed = x.dtype != self.base_layer.weight.dtype
        with torch.no_grad(), torch.autocast(x.device.type, dtype=x.dtype, enabled=mixed):
            return self._while_written(self._base(), self._updates(names), lambda: self.base_layer(x))

    @torch.no_grad()
    def operator_input_gradient(self, grad_y: torch.Tensor, names: list[str]) -> torch.Tensor:
        """The gradient (..., d_in) of that operator's input."""
        base = self.get_base_layer()
        matrix = as_matrix(base, base.weight)
        return self._while_written(self._base(), self._updates(names), lambda: grad_y @ matrix.to(grad_y.dtype))

    def _add_rebuilding(self, y: torch.Tensor, x: torch.Tensor, names: list[str]) -> torch.Tensor:
        """`_add_updates` that keeps no input which backward can compute again: the product's own backward would."""
        updates = self._updates(names)
        keeps = any(update.keeps_input and update.delta is not None for update in updates)
        for update in updates:
            if not (torch.is_grad_enabled() and update.trains):
                y = update.added_to(y, x)
                continue
            y = update.detached().added_to(y, x)
            y = with_gradient(y, x, update, None, self._source_of(x, update, keeps))
        return y

    def _add_updates(self, y: torch.Tensor, x: torch.Tensor, names: list[str]) -> torch.Tensor:
        for name, update in zip(names, self._updates(names), strict=True):
            if any(value.is_meta for value in self._parameters_of(name)) and not x.is_meta:
                raise UserError(
                    f"the values of adapter {name!r} in layer {self.layer_name} are offloaded (on the meta device); "
                    "keep target layers on a device: leave them out of the CPU and disk offload of device_map"
                )
            y = update.added_to(y, self.row_sft_dropout[name](x))
        return y

    def __repr__(self) -> str:
        return "row_sft." + super().__repr__()
