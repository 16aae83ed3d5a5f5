"""The tuner: finds the target layers, settles which rows and columns each one trains, and wraps them."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_target_module_exists
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers.pytorch_utils import Conv1D

from rowsft.compat.peft import name_all_linear_layers
from rowsft.errors import UserError
from rowsft.layers.matrix import LinearLayer, is_bypassed, layer_shape
from rowsft.layers.quantised import is_packed, keep_layout
from rowsft.selection.channel import CHANNELS
from rowsft.selection.ids import Chosen, given_ids, placeholders

from .config import RowSFTConfig
from .layer import RowSFTLayer
from .linear import Linear


class RowSFTModel(BaseTuner):
    """Row-SFT (Li and Bhaskara, arXiv 2502.11439): train the most important rows (or columns) of every target layer.

    Args:
        model (`torch.nn.Module`): the base model.
        config ([`RowSFTConfig`]): the configuration of the adapter.
        adapter_name (`str`): the adapter's name, `"default"` by default.
        low_cpu_mem_usage (`bool`): create empty adapter tensors on the meta device, to be filled from a checkpoint.

    Example:

        ```py
        >>> from transformers import AutoModelForCausalLM
        >>> from peft import get_peft_model
        >>> from rowsft import RowSFTConfig

        >>> base = AutoModelForCausalLM.from_pretrained("HuggingFaceTB/SmolLM2-135M")
        >>> model = get_peft_model(base, RowSFTConfig(rows=16, importance="l2", target_modules=["q_proj", "v_proj"]))
        ```
    """

    prefix: str = "row_sft_"
    tuner_layer_cls = RowSFTLayer
    # PEFT's own types of the two differ.
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING  # type: ignore[assignment]

    def input_sources(self) -> dict[str, str]:
        """Full layer name -> where the input of its last recorded forward is had from in backward.

        "rebuilt: NODE" where it is computed again from what NODE of the graph has saved, "kept: REASON" where the layer
        keeps it. Layers that have trained no rows in a recorded forward yet are left out.
        """
        layers = (module for module in self.model.modules() if isinstance(module, RowSFTLayer))
        return {layer.layer_name: layer.input_source for layer in layers if layer.input_source is not None}

    @contextmanager
    def _enable_peft_forward_hooks(self, *args, **kwargs):
        # PEFT drops what a tuner does not look at here, and would run every sample with the active adapters.
        if kwargs.get("adapter_names") is not None:
            raise UserError(
                f"adapter_names={kwargs['adapter_names']}: a batch cannot mix row-SFT adapters, whose rows are written "
                "into the base weight; call set_adapter and run the samples of each adapter apart"
            )
        yield

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        if not autocast_adapter_dtype:
            # Asked for in so many words; otherwise the updates of a 16-bit base are 32-bit from the start.
            for module in self.modules():
                if isinstance(module, RowSFTLayer):
                    module.cast_to_base(adapter_name)

    # PEFT gives a tuner configurations of its own kind only.
    def _prepare_model(self, peft_config: RowSFTConfig, model: nn.Module) -> None:  # type: ignore[override]
        """Settle every layer's ids before the first one is wrapped, so that bad input leaves the model as it was."""
        keep_layout(model)
        _expand_all_linear(peft_config, model)
        targets = self._targets(peft_config, model)
        _take_sizes_from_ids(peft_config, targets)
        for setting in ("rows_pattern", "columns_pattern", "row_ids", "column_ids"):
            if unknown := set(getattr(peft_config, setting) or {}) - set(targets):
                raise UserError(
                    f"{setting} names {sorted(unknown)[0]}, which target_modules does not select in this model; "
                    "use full layer names such as model.layers.0.self_attn.q_proj"
                )
        self._shared = _shared_tensors(model)
        self._planned = self._plan(peft_config, model, targets)
        if targets and not any(len(ids.rows) + len(ids.columns) for ids in self._planned.values()):
            raise UserError(
                "every target layer is left with 0 rows and 0 columns, nothing would be trained; raise the budget"
            )

    def _targets(self, config: RowSFTConfig, model: nn.Module) -> dict[str, LinearLayer]:
        """The layers that the config selects, by full name; layers wrapped by another adapter give their base layer."""
        targets: dict[str, LinearLayer] = {}
        inside: tuple[str, ...] = ()
        for name, module in model.named_modules():
            if not name or name.startswith(inside) or not self._check_target_module_exists(config, name):
                continue
            if isinstance(module, BaseTunerLayer):
                inside = (*inside, f"{name}.")
                module = module.get_base_layer()
            if not isinstance(module, (nn.Linear, Conv1D)):
                raise UserError(
                    f"target_modules selects {name}, a {type(module).__name__}; row-SFT trains nn.Linear and "
                    "Conv1D layers: name those, or list this one in exclude_modules"
                )
            if is_bypassed(model, name):
                raise UserError(
                    f"target_modules selects {name}, whose weight the model reads without calling the layer, so that "
                    "nothing in it would be trained; list it in exclude_modules"
                )
            targets[name] = module
        return targets

    def _plan(self, config: RowSFTConfig, model: nn.Module, targets: dict[str, LinearLayer]) -> dict[str, Chosen]:
        """Ids of the layers: given, placeholders until a checkpoint brings them, or chosen by a metric without data."""
        if config.row_ids is not None or config.column_ids is not None:
            return {name: _given(config, name, layer) for name, layer in targets.items()}
        if config.rows_in_checkpoint and not _may_choose(config, targets):
            sizes = {name: config.sizes_of(name, *layer_shape(layer)) for name, layer in targets.items()}
            return {name: Chosen(*map(placeholders, size)) for name, size in sizes.items()}
        # Imported here because it imports peft, and importing peft imports this module.
        from rowsft.tuner.attach import plan_rows

        for name, layer in targets.items():
            if layer.weight.is_meta:
                raise UserError(
                    f"layer {name} has no weights that can be scored (on the meta device); pass row_ids and column_ids"
                )
        with ExitStack() as originals:
            for module in model.modules():
                # What is scored is the base model, not an earlier adapter's rows in it, for which a graph may wait.
                if isinstance(module, RowSFTLayer) and not module.merged:
                    originals.enter_context(module.with_originals())
            chosen = plan_rows(model, targets, config)
        if CHANNELS[config.channel].split is None or config.scope != "layer" or config.attention != "linear":
            # Sizes that do not follow from the layer alone: a saved adapter must find them in its config.
            config.rows_pattern = {name: len(each.rows) for name, each in chosen.items() if len(each.rows)}
            config.columns_pattern = {name: len(each.columns) for name, each in chosen.items() if len(each.columns)}
            config.rows = config.ratio = None
        return chosen

    def _create_and_replace(
        self, peft_config, adapter_name, target, target_name, parent, current_key, parameter_name=None
    ) -> None:
        base_layer: Any = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        # Injection from a state dict may select layers that the config does not.
        ids = self._planned.get(current_key)
        if ids is None:
            ids = self._plan(peft_config, self.model, {current_key: base_layer})[current_key]
        if not len(ids.rows) + len(ids.columns):
            return
        if isinstance(target, RowSFTLayer):
            target.update_layer(adapter_name, ids, peft_config)
            return
        shared = any(self._shared[_key(tensor)] > 1 for tensor in base_layer.parameters(recurse=False))
        new_module = Linear(target, adapter_name, peft_config, layer_name=current_key, ids=ids, shared=shared)
        if adapter_name not in self.active_adapters:
            # An additional adapter is not trainable by itself.
            new_module.requires_grad_(False)
        self._replace_module(parent, target_name, new_module, target)

    @classmethod
    def _remap_adapter_state_dict_for_load(cls, model, config, adapter_name, state_dict):
        remapped = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        known = model.state_dict().keys()
        if config.rows_in_checkpoint:
            _check_ids_come_along(cls.prefix, remapped, adapter_name)
        for key in remapped:
            layer, prefix, _ = key.rpartition(f".{cls.prefix}")
            if prefix and key not in known:
                raise UserError(
                    f"the checkpoint has {key.removeprefix(f'{layer}.')} of {layer}, which adapter {adapter_name!r} "
                    "does not train in this model; load the adapter on the base model, and with the config, that it "
                    "was trained with"
                )
        return remapped


def _check_ids_come_along(prefix: str, state_dict: dict, adapter_name: str) -> None:
    """Values without their ids would be trained on in other rows than they were made for."""
    for values, ids in (("delta", "ids"), ("column_delta", "column_ids")):
        ending = f".{prefix}{values}.{adapter_name}"
        for key in (key for key in state_dict if key.endswith(ending)):
            if f"{key.removesuffix(ending)}.{prefix}{ids}.{adapter_name}" not in state_dict:
                raise UserError(
                    f"the checkpoint has {prefix}{values} of {key.removesuffix(ending)} but no {prefix}{ids}; "
                    "save the adapter again"
                )


def _may_choose(config: RowSFTConfig, targets: dict[str, LinearLayer]) -> bool:
    """Whether a saved adapter's config can choose rows as when it was new, of the same sizes.

    A model that is to be trained has them chosen: the config may be all that is used of the saved adapter, for a new
    training. Where its tensors are loaded too, they bring ids of their own.
    """
    from rowsft.importance.registry import metric

    one_by_one = CHANNELS[config.channel].split is not None and config.scope == "layer" and config.attention == "linear"
    return (
        not config.inference_mode
        and one_by_one
        and not metric(config.importance).needs_data
        and not any(layer.weight.is_meta for layer in targets.values())
    )


def _expand_all_linear(config: RowSFTConfig, model: nn.Module) -> None:
    """Put names for "all-linear": PEFT's own, less the task heads and poolers that every method trains in full.

    Layers that nobody calls are left out too.
    """
    from rowsft.selection.targets import HEAD_NAMES

    if isinstance(config.target_modules, str) and config.target_modules.lower() == "all-linear":
        name_all_linear_layers(config, model)
        linears = {name for name in config.target_modules if not is_bypassed(model, name)}
        linears = {name for name in linears if HEAD_NAMES.isdisjoint(name.split("."))} or linears
        config.target_modules = {name for name in linears if _is_in_layers(config, name)}
        if not config.target_modules:
            raise UserError(
                f"layers_to_transform={config.layers_to_transform} (layers_pattern={config.layers_pattern}) leaves no "
                f"linear layer of this model, which has {min(linears, default='none')} and others; give indices of "
                "its blocks, from 0"
            )


def _is_in_layers(config: RowSFTConfig, name: str) -> bool:
    """Whether layers_to_transform lets a layer pass, by PEFT's own rule, which does not look at full names."""
    indices = config.layers_to_transform
    if indices is None:
        return True
    rules = SimpleNamespace(
        target_modules=[name.rpartition(".")[2]],
        layers_to_transform=indices if isinstance(indices, int) else list(indices),
        layers_pattern=config.layers_pattern,
    )
    return bool(check_target_module_exists(rules, name))


def _take_sizes_from_ids(config: RowSFTConfig, targets: dict[str, LinearLayer]) -> None:
    """Given ids settle the sizes where nothing else does: with no size, and where a size is none of a single layer."""
    channel = CHANNELS[config.channel]
    if not config.has_no_size and channel.split is not None and config.scope == "layer":
        return
    if config.row_ids is None and config.column_ids is None:
        return
    if channel.has_rows and config.rows_pattern is None:
        config.rows_pattern = {name: len((config.row_ids or {}).get(name, ())) for name in targets}
    if channel.has_columns and config.columns_pattern is None:
        config.columns_pattern = {name: len((config.column_ids or {}).get(name, ())) for name in targets}


def _given(config: RowSFTConfig, name: str, layer: LinearLayer) -> Chosen:
    shape = layer_shape(layer)
    rows, columns = config.sizes_of(name, *shape)
    return Chosen(
        _given_ids(config.row_ids, "row", name, rows, shape[0]),
        _given_ids(config.column_ids, "column", name, columns, shape[1]),
    )


def _given_ids(given, axis: str, name: str, size: int, most: int) -> torch.Tensor:
    ids = given_ids((given or {}).get(name, ()), axis, name, most)
    if len(ids) != size:
        raise UserError(f"{axis}_ids has {len(ids)} ids for layer {name}, but its size is set to {size} {axis}s")
    return ids


def _shared_tensors(model: nn.Module) -> Counter:
    """How many places in the model hold each parameter's storage."""
    return Counter(_key(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))


def _key(tensor: torch.Tensor):
    # A packed weight may be several tensors that have storages of their own.
    address = 0 if tensor.is_meta or is_packed(tensor) else tensor.untyped_storage().data_ptr()
    return address or id(tensor)
