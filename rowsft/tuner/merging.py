"""A layer's adapters as a change of its base weight: as a matrix, or merged until they are taken out bit for bit."""

from __future__ import annotations

import warnings

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import nn

from rowsft.errors import UserError
from rowsft.layers.matrix import as_matrix

from .compiled import forget_layer
from .contents import Claim
from .layer import RowSFTLayer, parameter_of
from .managed import SHARDING, manager_of
from .patch import Patch


class MergeableLayer(RowSFTLayer):
    """A row-SFT layer whose updates can be had as a matrix, or left in the base weight."""

    def __init__(self, base_layer: nn.Module, layer_name: str, shared: bool):
        super().__init__(base_layer, layer_name, shared)
        #: The tensors that it shares with other modules, while merged.
        self._tied: dict[str, nn.Parameter] = {}

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """Return the adapter's update as a matrix, laid out as the base weight is: (d_out, d_in), Conv1D (d_in, d_out).

        Raises UserError where its values are sharded over processes.
        """
        self._check_whole(adapter)
        dense = self._updates([adapter])[0].dense(self.out_features, self.in_features).detach()
        return as_matrix(self.get_base_layer(), dense).contiguous()

    def squared_change(self, x: torch.Tensor, adapter: str) -> torch.Tensor:
        """Return the sum of ‖ΔW h‖² over the inputs h, the rows of x (n, d_in): a float64 scalar.

        Raises UserError where its values are sharded over processes.
        """
        self._check_whole(adapter)
        return self._updates([adapter])[0].squared_change(x)

    def _check_whole(self, adapter: str) -> None:
        rows = len(self.row_sft_ids[adapter]) if adapter in self.row_sft_ids else 0
        columns = len(self.row_sft_column_ids[adapter]) if adapter in self.row_sft_column_ids else 0
        manager = manager_of(self.get_base_layer())
        for name, shape in (
            ("row_sft_delta", (rows, self.in_features)),
            ("row_sft_column_delta", (self.out_features - rows, columns)),
        ):
            value = parameter_of(getattr(self, name), adapter)
            is_gone = value is None and manager in SHARDING and 0 not in shape
            if is_gone or (value is not None and (value.shape != shape or hasattr(value, "placements"))):
                raise UserError(
                    f"{name} of adapter {adapter!r} in layer {self.layer_name} is sharded ({manager or 'DTensor'}), so "
                    "the whole of it is in no process; gather it first (summon_full_params, unshard(), or a full state "
                    "dict)"
                )

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Return whether PEFT may turn the adapter into LoRA factors, which carry no change of biases."""
        return adapter_name not in self.row_sft_bias

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Leave the adapters' updates in the base weight until `unmerge`, which puts the originals back bit for bit.

        Args:
            safe_merge: refuse, with a ValueError and nothing changed, when a merged entry would not be finite.
            adapter_names: the adapters to merge; the active ones by default.

        Raises:
            UserError: when the base weight is quantised, sharded (FSDP, replicate, ZeRO-3) or on the meta device.
        """
        names = self._adapters(check_adapters_to_merge(self, adapter_names))
        if not names:
            return
        self._check_mergeable()
        names = [*self.merged_adapters, *names]
        if safe_merge:
            self._check_finite(names)
        if self.shared and not self._tied:
            self._untie()
        self._merge_claimed(names)
        self.merged_adapters = names

    def _check_mergeable(self) -> None:
        base_layer = self.get_base_layer()
        manager, weight = manager_of(base_layer), base_layer.weight
        if manager in SHARDING:
            raise UserError(
                f"cannot merge into layer {self.layer_name}: its weight is managed by {manager}, which exchanges it "
                "with other processes; save the adapter, load it on an unsharded base model, and merge there"
            )
        if not self._base().is_ordinary:
            raise UserError(
                f"cannot merge into layer {self.layer_name}: its weight is {type(weight).__name__} of {weight.dtype} "
                f"on {weight.device}; load the base model unquantised, on one device, and merge there"
            )

    def _merged(self) -> Claim:
        """The merged adapters' claim on the base weight."""
        claim = self._merged_claim
        if claim is None or claim.contents is not self._contents():
            raise UserError(
                f"the base weight of layer {self.layer_name} was replaced while adapters {self.merged_adapters} were "
                "merged into it, so the originals of their rows are not at hand; load the base model and the adapter "
                "again, or unmerge before you replace weights"
            )
        return claim

    def _merge_claimed(self, names: list[str]) -> None:
        """Claim the weight with the updates until `unmerge`; graphs that wait for anything else are refused."""
        updates = self._updates(names)
        if (contents := self._contents()) is not None:
            contents.outdated = True
        claim = self._claim(updates, recorded=True)
        if claim is None:
            self.end_claims()
            claim = self._claim(updates, recorded=True)
        self._merged_claim, before = claim, self._merged_claim
        if before is not None:
            before.release()

    def _check_finite(self, names: list[str]) -> None:
        updates, tensors = self._updates(names), self._private_copy([])
        patch = Patch(self.get_base_layer(), tensors, updates)
        patch.write(tensors, updates)
        for block in patch.blocks(tensors):
            if block is not None and not torch.isfinite(block).all():
                raise ValueError(f"layer {self.layer_name} would not be finite after merging adapters {names}")

    def _untie(self) -> None:
        """Give this layer its own tensors while merged: other modules share them and must not see the updates."""
        self._tied = self._base().parameters
        for name, tensor in self._tied.items():
            setattr(self.get_base_layer(), name, nn.Parameter(tensor.detach().clone(), requires_grad=False))

    def unmerge(self) -> None:
        """Put the originals back, bit for bit."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        claim = self._merged()
        claim.contents.check_untouched()
        claim.release()
        self._merged_claim, self.merged_adapters = None, []
        for name, tensor in self._tied.items():
            setattr(self.get_base_layer(), name, tensor)
        self._tied = {}

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """Return the plain base layer, merged or as it was; called by `merge_and_unload` and `unload`."""
        if merge:
            self.merge(safe_merge=safe_merge, adapter_names=adapter_names)
        elif self.merged:
            self.unmerge()
        if self.merged:
            self._merged().contents.keep()
        else:
            self.end_claims()
        forget_layer(self)
        return self.get_base_layer()
