"""Row and column updates as LoRA factors: the same change of W, exactly.

Rows: A is delta (k, d_in) and B selects the rows (d_out, k). Columns: A selects the columns (k, d_in) and B is delta
(d_out, k). Both at once: the factors side by side. alpha = r, so PEFT's scaling is 1. Every entry of B A is one product
with 1 and zeros, so no rounding happens.
"""

import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rowsft.compat.peft import loads_as_lora
from rowsft.errors import UserError
from rowsft.export.source import PREFIX
from rowsft.layers.matrix import layer_shape
from rowsft.methods.peft_method import in_order
from rowsft.progress import bar

# The tensors of one layer as the tuner saves them.
ROW_IDS, ROW_DELTA, ROW_BIAS = "row_sft_ids", "row_sft_delta", "row_sft_bias"
COLUMN_IDS, COLUMN_DELTA = "row_sft_column_ids", "row_sft_column_delta"
BIASES = ("keep", "refuse")
VLLM_LARGEST_RANK = 512

_TENSOR = re.compile(
    rf"{re.escape(PREFIX)}(.+)\.({'|'.join((ROW_IDS, ROW_DELTA, ROW_BIAS, COLUMN_IDS, COLUMN_DELTA))})"
)


@dataclass(frozen=True)
class LoraAdapter:
    """tensors as PEFT saves them, the rank of every layer (its alpha too), and what some servers do not read."""

    tensors: dict[str, Tensor]
    ranks: dict[str, int]
    target_modules: list[str] | str
    fan_in_fan_out: bool
    lora_bias: bool
    warnings: list[str] = field(default_factory=list)

    def write(self, folder: Path, config: dict) -> None:
        """adapter_config.json and adapter_model.safetensors; `config` is the row adapter's adapter_config.json."""
        # The largest one is the default: a server that ignores patterns makes room by it, and alpha / r is 1 anyway.
        rank = max(self.ranks.values())
        others = {f"^{re.escape(name)}": r for name, r in self.ranks.items() if r != rank}
        keys = ("base_model_name_or_path", "revision", "task_type", "auto_mapping", "modules_to_save")
        kept: dict[str, Any] = {key: config.get(key) for key in keys}
        made = LoraConfig(
            **kept,
            inference_mode=True,
            r=rank,
            lora_alpha=rank,
            rank_pattern=others,
            alpha_pattern=dict(others),
            target_modules=self.target_modules,
            fan_in_fan_out=self.fan_in_fan_out,
            lora_bias=self.lora_bias,
        )
        in_order(made).save_pretrained(str(folder))
        save_file(self.tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def active_adapter(model: PeftModel) -> tuple[dict[str, Tensor], dict]:
    """The tensors of a model's active row-SFT adapter as PEFT would save them, and its adapter_config.json.

    Raises UserError where the model is no PEFT model or another kind of adapter is active.
    """
    if not isinstance(model, PeftModel):
        raise UserError(f"to_lora got a {type(model).__name__}; expected a PeftModel with a row-SFT adapter")
    name = model.active_adapter
    config = model.peft_config[name].to_dict()
    if str(getattr(config["peft_type"], "value", config["peft_type"])) != "ROW_SFT":
        raise UserError(f"adapter {name!r} is {config['peft_type']}; expected a row-SFT adapter, the others stay as is")
    if config.get("task_type") is None:
        base = type(model.get_base_model())
        config["auto_mapping"] = {"base_model_class": base.__name__, "parent_library": base.__module__}
    tensors = get_peft_model_state_dict(model, adapter_name=name)
    return {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, config


def convert(tensors: dict[str, Tensor], base: nn.Module, biases: str = "keep") -> LoraAdapter:
    """LoRA factors of every layer in `tensors`, a saved row-SFT adapter; anything else in it goes along as it is.

    base: the model that it belongs to, plain or wrapped; only names and shapes are read, so the meta device will do.
    biases: "keep" the trained ones, or "refuse". Raises UserError where the adapter does not fit `base`, and for layers
    in which PEFT loads no LoRA.
    """
    if biases not in BIASES:
        raise UserError(f"biases={biases}: unknown; use one of {', '.join(BIASES)}")
    parts, converted = _by_layer(tensors)
    layers = _layers(base, parts)
    has_bias = any(ROW_BIAS in part for part in parts.values())
    if has_bias and biases == "refuse":
        named = next(name for name, part in parts.items() if ROW_BIAS in part)
        raise UserError(
            f"the adapter trains biases (layer {named}), which biases=refuse forbids; use --biases keep, --to merged, "
            "or train with method.train_bias=false"
        )
    if refused := [name for name in layers if not loads_as_lora(base, name)]:
        raise UserError(f"PEFT loads no LoRA of layer {refused[0]} in a model of this kind (Mamba); use --to merged")
    ranks = {}
    for name, layer in bar("converting")(layers.items(), len(layers)):
        a, b = factors(name, parts[name], *layer_shape(layer))
        ranks[name] = len(a)
        converted[f"{PREFIX}{name}.lora_A.weight"] = a
        converted[f"{PREFIX}{name}.lora_B.weight"] = b
        if has_bias:
            # PEFT knows one lora_bias for all layers: those without a trained bias get zeros.
            bias = b.new_zeros(len(b))
            if ROW_BIAS in parts[name]:
                bias[parts[name][ROW_IDS]] = _bias(name, parts[name], layer).to(b.dtype)
            converted[f"{PREFIX}{name}.lora_B.bias"] = bias
    return LoraAdapter(
        converted,
        ranks,
        _target_modules(base, list(layers)),
        fan_in_fan_out=all(isinstance(layer, Conv1D) for layer in layers.values()),
        lora_bias=has_bias,
        warnings=_warnings(ranks, layers, has_bias),
    )


def factors(name: str, part: dict[str, Tensor], d_out: int, d_in: int) -> tuple[Tensor, Tensor]:
    """A (k, d_in) and B (d_out, k) of one layer, k its rows and columns together.

    part: the layer's tensors by their saved names. Raises UserError where they do not fit (d_out, d_in).
    """
    for ids, delta in ((ROW_IDS, ROW_DELTA), (COLUMN_IDS, COLUMN_DELTA)):
        if (ids in part) != (delta in part):
            there, lacking = (ids, delta) if ids in part else (delta, ids)
            raise UserError(f"the adapter has {there} of layer {name}, but no {lacking}; save the adapter again")
    dtype = part[ROW_DELTA if ROW_DELTA in part else COLUMN_DELTA].dtype
    rows = _ids(name, part, ROW_IDS, d_out)
    columns = _ids(name, part, COLUMN_IDS, d_in)
    # Crossing entries belong to the rows: the columns' update leaves the chosen rows out.
    left = torch.ones(d_out, dtype=torch.bool).index_fill_(0, rows, False).nonzero().flatten()
    row_delta = _delta(name, part, ROW_DELTA, (len(rows), d_in), dtype)
    column_delta = _delta(name, part, COLUMN_DELTA, (len(left), len(columns)), dtype)
    a = torch.zeros(len(rows) + len(columns), d_in, dtype=dtype)
    a[: len(rows)] = row_delta
    a[torch.arange(len(rows), len(a)), columns] = 1
    b = torch.zeros(d_out, len(a), dtype=dtype)
    b[rows, torch.arange(len(rows))] = 1
    b[left, len(rows) :] = column_delta
    return a, b


def _by_layer(tensors: dict[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """({layer: {saved name: tensor}}, all other tensors)."""
    parts: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    others: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if match := _TENSOR.fullmatch(key):
            parts[match[1]][match[2]] = tensor
        else:
            others[key] = tensor
    if not parts:
        raise UserError("the adapter holds no rows or columns; expected one saved from a row-SFT model")
    if strange := [key for key in others if ".row_sft_" in key]:
        raise UserError(f"the adapter's tensor {strange[0]} is not one that this rowsft knows; upgrade rowsft")
    return dict(parts), others


def _layers(base: nn.Module, parts: dict) -> dict[str, nn.Module]:
    """The layers that the adapter names, in the model's order."""
    modules = dict(base.named_modules())
    for name in parts:
        if name not in modules:
            raise UserError(
                f"the adapter has an update of {name}, which {type(base).__name__} does not have; "
                "give the base model that it was trained on"
            )
    adapted = {name: module for name, module in modules.items() if name in parts}
    return {
        name: module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        for name, module in adapted.items()
    }


def _ids(name: str, part: dict[str, Tensor], kind: str, most: int) -> Tensor:
    ids = part.get(kind, torch.empty(0, dtype=torch.int64))
    if ids.ndim != 1 or ids.is_floating_point() or ids.is_complex() or ids.dtype is torch.bool:
        raise UserError(
            f"{kind} of layer {name} are {ids.dtype} of shape {tuple(ids.shape)}; expected a list of whole numbers: "
            "save the adapter again"
        )
    ids = ids.long()
    if len(ids) and (ids.min() < 0 or ids.max() >= most or len(ids.unique()) != len(ids)):
        raise UserError(
            f"{kind} of layer {name} run from {ids.min()} to {ids.max()}; expected different ones from 0 to "
            f"{most - 1}: give the base model that the adapter was trained on"
        )
    return ids


def _delta(name: str, part: dict[str, Tensor], kind: str, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    delta = part.get(kind, torch.zeros(shape if 0 in shape else (0, 0), dtype=dtype))
    if delta.shape != shape:
        raise UserError(
            f"{kind} of layer {name} has shape {tuple(delta.shape)}, the base model asks for {shape}; "
            "give the base model that the adapter was trained on"
        )
    return _finite(name, kind, delta).to(dtype)


def _bias(name: str, part: dict[str, Tensor], layer: nn.Module) -> Tensor:
    bias, rows = part[ROW_BIAS], part.get(ROW_IDS, ())
    if layer.bias is None or bias.shape != (len(rows),):
        raise UserError(
            f"{ROW_BIAS} of layer {name} has shape {tuple(bias.shape)}, the base model asks for "
            f"{'none' if layer.bias is None else (len(rows),)}; give the base model that the adapter was trained on"
        )
    return _finite(name, ROW_BIAS, bias)


def _finite(name: str, kind: str, values: Tensor) -> Tensor:
    if not torch.isfinite(values).all():
        raise UserError(
            f"{kind} of layer {name} is not finite, so no product can carry it; train again with a lower rate"
        )
    return values


def _target_modules(base: nn.Module, names: list[str]) -> list[str] | str:
    """Full names. PEFT takes them as endings too: where that would hit further modules, one pattern of whole names."""
    config = LoraConfig(target_modules=names)
    hit = [name for name, _ in base.named_modules() if check_target_module_exists(config, name)]
    return names if len(hit) == len(names) else "|".join(re.escape(name) for name in names)


def _warnings(ranks: dict[str, int], layers: dict[str, nn.Module], has_bias: bool) -> list[str]:
    warnings = []
    largest = max(ranks, key=lambda name: ranks[name])
    if ranks[largest] > VLLM_LARGEST_RANK:
        warnings.append(
            f"rank {ranks[largest]} of layer {largest}: vLLM reads ranks up to {VLLM_LARGEST_RANK}; "
            "serve it merged (--to merged) there"
        )
    if has_bias:
        warnings.append("trained biases: vLLM does not read lora_bias; serve it merged (--to merged) there")
    bare = [name for name, layer in layers.items() if layer.bias is None]
    if has_bias and bare:
        warnings.append(
            f"layer {bare[0]} has no bias, so PEFT can load this adapter but not merge it; --to merged gives that"
        )
    return warnings
