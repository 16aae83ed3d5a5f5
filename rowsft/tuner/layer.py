"""What a row-SFT layer keeps for its adapters, and how it writes their updates into the frozen base weight."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from rowsft.compat.peft import BufferDict
from rowsft.compat.torch import buffers_of, parameters_of
from rowsft.errors import UserError
from rowsft.layers.matrix import layer_shape, other_rows
from rowsft.selection.ids import Chosen, check_layer_ids

from .base import BaseTensors
from .compiled import register_layer
from .config import RowSFTConfig
from .contents import Claim, Contents, claim, contents_of
from .managed import WRITABLE_DTYPES
from .patch import Patch
from .update import Update


class RowSFTLayer(nn.Module, BaseTunerLayer):
    """What a row-SFT layer keeps per adapter, and how the base weight follows the active adapters.

    While a forward with active adapters runs, or its graph waits for the backward pass, the base weight holds
    W0 + delta in their rows and columns, and forward is the base layer's own; at any other time it holds W0
    (contents.py). An adapter that trains no rows here, or no columns, has no entry in the dictionaries of that kind.

    input_source: where the input of the last recorded forward is had from in backward: "rebuilt: ..." or "kept: ...".
    """

    adapter_layer_names = ("row_sft_delta", "row_sft_bias", "row_sft_column_delta")
    other_param_names = ("row_sft_ids", "row_sft_column_ids", "row_sft_dropout")

    def __init__(self, base_layer: nn.Module, layer_name: str, shared: bool):
        super().__init__()
        self.base_layer = base_layer
        self.layer_name = layer_name
        self.shared = shared
        self.out_features, self.in_features = layer_shape(self.get_base_layer())
        self.row_sft_delta = nn.ParameterDict({})
        self.row_sft_bias = nn.ParameterDict({})
        self.row_sft_column_delta = nn.ParameterDict({})
        self.row_sft_ids = BufferDict(persistent=True)
        self.row_sft_column_ids = BufferDict(persistent=True)
        self.row_sft_dropout = nn.ModuleDict({})
        self._disable_adapters = False
        self.merged_adapters = []
        self.input_source: str | None = None
        self._keep_inputs: set[str] = set()
        self._why_kept: str | None = None
        self._input_checked = False
        self._patch: Patch | None = None
        self._merged_claim: Claim | None = None
        self._may_drop_inputs = False
        self._seen_base: BaseTensors | None = None
        self._made: dict[str, Update] = {}
        register_layer(self)

    def get_base_layer(self) -> nn.Linear:
        """Return the frozen layer below all adapters: an nn.Linear, or a Conv1D, which has its attributes."""
        return cast(nn.Linear, super().get_base_layer())

    def update_layer(self, adapter_name: str, ids: Chosen, config: RowSFTConfig) -> None:
        """Add an adapter that trains the given rows and columns of this layer, starting at zero change."""
        weight = self.get_base_layer().weight
        dtype = weight.dtype if weight.dtype in (torch.float32, torch.float64) else torch.float32
        kr, kc = len(ids.rows), len(ids.columns)
        if kr:
            self.row_sft_ids[adapter_name] = ids.rows.clone()
            self.row_sft_delta[adapter_name] = nn.Parameter(torch.zeros(kr, self.in_features, dtype=dtype))
            if config.train_bias and self.get_base_layer().bias is not None:
                self.row_sft_bias[adapter_name] = nn.Parameter(torch.zeros(kr, dtype=dtype))
        if kc:
            self.row_sft_column_ids[adapter_name] = ids.columns.clone()
            self.row_sft_column_delta[adapter_name] = nn.Parameter(torch.zeros(self.out_features - kr, kc, dtype=dtype))
        if not config.init_weights:
            for value in self._parameters_of(adapter_name):
                nn.init.normal_(value)
        # A layer that was found to need its input kept has to be found so again.
        self._why_kept, self._input_checked = None, False
        if not config.recompute_inputs:
            self._keep_inputs.add(adapter_name)
        self.row_sft_dropout[adapter_name] = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self._may_drop_inputs |= bool(config.dropout)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # PEFT's own version also casts to the base dtype, which would lose the 32-bit copy on a 16-bit base.
        device = device or self.get_base_layer().weight.device
        for name in (*self.adapter_layer_names, "row_sft_ids", "row_sft_column_ids"):
            tensors = getattr(self, name)
            if adapter_name in tensors and not tensors[adapter_name].is_meta:
                tensors[adapter_name] = tensors[adapter_name].to(device)

    def cast_to_base(self, adapter_name: str) -> None:
        """Keep the adapter's values in the base weight's own dtype, as autocast_adapter_dtype=False asks."""
        dtype = self.get_base_layer().weight.dtype
        for name in self.adapter_layer_names:
            values = getattr(self, name)
            if adapter_name in values and dtype in WRITABLE_DTYPES:
                value = values[adapter_name]
                values[adapter_name] = nn.Parameter(value.data.to(dtype), requires_grad=value.requires_grad)

    def _parameters_of(self, adapter_name: str) -> list[nn.Parameter]:
        """What the adapter trains here."""
        kinds = (getattr(self, name) for name in self.adapter_layer_names)
        return [values[adapter_name] for values in kinds if adapter_name in values]

    @torch.no_grad()
    def add_entries(self, values: torch.Tensor, adapter_name: str, sign: int = 1) -> None:
        """Add `sign` times a matrix (d_out, d_in) to the adapter's values, where it has its rows and columns."""
        update = self._update(adapter_name)
        rows, columns, others = update.rows, update.columns, update.others
        if update.delta is not None and rows is not None:
            chosen = values.index_select(0, rows.to(values.device))
            update.delta.add_(chosen.to(update.delta), alpha=sign)
        if update.column_delta is not None and columns is not None:
            crossed = values.index_select(1, columns.to(values.device))
            crossed = crossed if others is None else crossed.index_select(0, others.to(values.device))
            update.column_delta.add_(crossed.to(update.column_delta), alpha=sign)

    def delete_adapter(self, adapter_name: str) -> None:
        self._patch = None
        self._made.pop(adapter_name, None)
        self._keep_inputs.discard(adapter_name)
        super().delete_adapter(adapter_name)

    # The base weight ------------------------------------------------------------------------------------------------

    def _base(self) -> BaseTensors:
        """The base layer's tensors as they are now."""
        modules: dict[str, Any] = self._modules
        layer, seen = modules["base_layer"], self._seen_base
        if isinstance(layer, BaseTunerLayer):
            layer = layer.get_base_layer()
        if seen is None or not seen.is_of(layer):
            if seen is not None and not seen.has_not_moved() and (contents := contents_of(seen)) is not None:
                # Its storage went elsewhere, as into shared memory, with what is written in it.
                contents.end()
            # The patch goes too: its originals have the old ones' dtype and device.
            seen = self._seen_base = BaseTensors(layer)
            self._patch = None
        return seen

    def _contents(self) -> Contents | None:
        """What the base weight holds, while anybody claims it."""
        return contents_of(self._base())

    def _claim(self, updates: list[Update], recorded: bool, base: BaseTensors | None = None) -> Claim | None:
        """Have the base weight hold these updates, or the originals for none; None where a waiting graph forbids it."""
        base = base or self._base()
        return claim(self.layer_name, base, self._patch_for(updates, base), updates, recorded)

    def _patch_for(self, updates: list[Update], base: BaseTensors) -> Patch | None:
        if not updates:
            return None
        if self._patch is None or not self._patch.fits(updates):
            self._patch = Patch(self.get_base_layer(), base.tensors, updates)
        return self._patch

    def _private_copy(self, updates: list[Update]) -> dict[str, torch.Tensor]:
        """The base layer's tensors with these updates, whatever the base weight holds now."""
        contents = self._contents()
        if contents is None:
            tensors = {name: tensor.clone() for name, tensor in self._base().tensors.items()}
        else:
            tensors = contents.originals()
        if updates:
            Patch(self.get_base_layer(), tensors, updates).write(tensors, updates)
        return tensors

    def with_originals(self) -> AbstractContextManager:
        """The base weight holds the originals for the time of the block, whatever waits."""
        contents = self._contents()
        return nullcontext() if contents is None else contents.suspended()

    def end_claims(self) -> None:
        """Write the originals back now. Graphs that wait for their backward are refused by autograd from then on."""
        if (contents := self._contents()) is not None:
            contents.end()

    def _adapters(self, names: list[str]) -> list[str]:
        """Those of the named adapters that train something here."""
        modules: dict[str, Any] = self._modules
        rows, columns = modules["row_sft_delta"], modules["row_sft_column_delta"]
        return [name for name in names if name in rows or name in columns]

    def _updates(self, names: list[str]) -> list[Update]:
        return [self._update(name) for name in names]

    def _update(self, name: str) -> Update:
        """The adapter's update; made anew, with its ids checked, only when its tensors are others."""
        modules: dict[str, Any] = self._modules
        parts = (
            buffers_of(modules["row_sft_ids"]).get(name),
            parameter_of(modules["row_sft_delta"], name),
            parameter_of(modules["row_sft_bias"], name),
            buffers_of(modules["row_sft_column_ids"]).get(name),
            parameter_of(modules["row_sft_column_delta"], name),
        )
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return Update(*parts, others=self._others(name))
        made = self._made.get(name)
        if made is None or not made.consists_of(*parts):
            check_layer_ids(parts[0], parts[3], self.layer_name, (self.out_features, self.in_features), name)
            # An inference tensor, kept, could not be saved for a later backward.
            with torch.inference_mode(False):
                made = self._made[name] = Update(
                    *parts, others=self._others(name), keeps_input=name in self._keep_inputs
                )
        return made

    def _others(self, name: str) -> torch.Tensor | None:
        if name in self.row_sft_delta and name in self.row_sft_column_delta:
            return other_rows(self.row_sft_ids[name], self.out_features)
        return None

    @torch.compiler.assume_constant_result
    def _is_writable(self) -> bool:
        """Whether forward may write rows in place: nobody else reads or manages the base tensors, or trains them."""
        return not self.shared and self._base().is_writable

    # A weight that is moved, copied, saved or loaded while a graph waits ----------------------------------------------

    def state_dict(self, *args, prefix: str = "", keep_vars: bool = False, **kwargs):
        state = super().state_dict(*args, prefix=prefix, keep_vars=keep_vars, **kwargs)
        contents = self._contents()
        if contents is not None and not self.merged and not keep_vars:
            originals = contents.originals()
            names = {id(tensor): name for name, tensor in self._base().parameters.items()}
            for key, tensor in self.named_parameters(prefix=prefix.removesuffix(".")):
                if id(tensor) in names:
                    state[key] = originals[names[id(tensor)]]
        return state

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        for kind in (*self.adapter_layer_names, "row_sft_ids", "row_sft_column_ids"):
            for name, tensor in getattr(self, kind).items():
                _check_fits(state_dict, f"{prefix}{kind}.{name}", tensor)
        if not self.merged:
            self.end_claims()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _apply(self, fn, recurse=True):
        self.end_claims()
        super()._apply(fn, recurse)
        self._patch = None
        if self.merged:
            self._merged_claim = self._claim(self._updates(self.merged_adapters), recorded=True)
        return self

    def __getstate__(self):
        # Graphs are not copied. What is written for them, or merged, the copy's weight holds too: the patch goes along.
        contents = self._contents()
        patch = None if contents is None else contents.patch
        return {**self.__dict__, "_patch": patch, "_merged_claim": None, "_made": {}, "_seen_base": None}

    def __setstate__(self, state):
        super().__setstate__(state)
        register_layer(self)
        patch, self._patch = self._patch, None
        if patch is not None:
            contents = self._contents()
            # A shallow copy shares the weight with the graphs that wait for what it holds.
            if contents is None or contents.patch is not patch:
                patch.restore(self._base().tensors)
        if self.merged:
            self._merged_claim = self._claim(self._updates(self.merged_adapters), recorded=True)

    def train(self, mode: bool = True):
        if (contents := self._contents()) is not None:
            contents.outdated = True
        return super().train(mode)


def parameter_of(parameters: nn.ParameterDict, name: str) -> torch.Tensor | None:
    """The entry, by the short way: this is looked up in every forward."""
    own = parameters_of(parameters).get(name)
    # A flat sharded parameter puts views of itself there, which are no parameters.
    return parameters.__dict__.get(name) if own is None else own


def _check_fits(state_dict: dict[str, torch.Tensor], key: str, tensor: torch.Tensor) -> None:
    saved = state_dict.get(key)
    if saved is not None and saved.shape != tensor.shape:
        raise UserError(
            f"{key} has shape {tuple(saved.shape)} in the checkpoint, {tuple(tensor.shape)} in this model; "
            "load the adapter on the base model, and with the config, that it was trained with"
        )
