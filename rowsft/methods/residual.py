"""LoRA adapters that start from a part of the base weight, which is taken out of it: W = (W - s B0 A0) + s B A.

PEFT changes the base weight when it attaches such an adapter. Saved is the same change for the untouched base, a LoRA
adapter of twice the rank, s [B, -B0] [A; A0]: the conversion that PEFT makes too, which leaves out the task head and
what a rank_pattern means under rsLoRA.
"""

import json
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rowsft.errors import UserError
from rowsft.layers.matrix import LinearLayer, as_matrix, has_no_data, layer_shape
from rowsft.layers.quantised import is_packed
from rowsft.methods.base import ResolvedMethod
from rowsft.methods.peft_method import RankedMethod
from rowsft.selection.budget import Unit

#: Where a wrapped model keeps its `Start`.
_ATTRIBUTE = "rowsft_start"
#: PEFT's names of the factors, by the axis along which one more rank lies.
_FACTORS = {".lora_A.weight": 0, ".lora_B.weight": 1}
# What PEFT decomposes.
_TYPES = (torch.float32, torch.float16, torch.bfloat16)


class ResidualMethod(RankedMethod):
    """A LoRA method whose start PEFT takes out of the base weight. `peft_config` asks for that start."""

    def units(self, layers: Mapping[str, LinearLayer]) -> dict[str, Unit]:
        """One more rank costs d_in + d_out; a weight has min(d_in, d_out) of them.

        Raises UserError for weights that PEFT cannot decompose and change.
        """
        units = {}
        for name, layer in layers.items():
            d_out, d_in = layer_shape(layer)
            if is_packed(layer.weight) or layer.weight.dtype not in _TYPES:
                held = "quantised" if is_packed(layer.weight) else f"{layer.weight.dtype}"
                raise UserError(
                    f"method={self.name}: layer {name} holds {held} values, of which no part can be taken out; use "
                    "method=lora, or a base model in 32 or 16 bit"
                )
            units[name] = Unit(d_in + d_out, most=min(d_in, d_out), noun="ranks")
        return units

    def attach(self, model: nn.Module, resolved: ResolvedMethod) -> PeftModel:
        """See `Method.attach`. The base weights change; the sum with the adapter is what they were, to rounding."""
        wrapped = super().attach(model, resolved)
        setattr(wrapped, _ATTRIBUTE, Start(_factors(get_peft_model_state_dict(wrapped, save_embedding_layers=False))))
        return wrapped

    def save(self, model: PeftModel, folder: Path) -> None:
        """See `Method.save`: a LoRA adapter of twice the rank, for the untouched base."""
        super().save(model, folder)
        path, settings = folder / SAFETENSORS_WEIGHTS_NAME, folder / CONFIG_NAME
        start = start_of(model)
        assert start is not None, "made when it was attached"
        save_file(joined(load_file(path), start.tensors()), path, metadata={"format": "pt"})
        settings.write_text(json.dumps(_as_lora(json.loads(settings.read_text())), indent=2, sort_keys=True))

    def load(self, model: nn.Module, resolved: ResolvedMethod, folder: Path) -> PeftModel:
        """See `ReloadedMethod.load`: as it was trained, with the start taken out of the base weights again."""
        own, start = parted(load_file(folder / SAFETENSORS_WEIGHTS_NAME))
        config = cast(LoraConfig, self.peft_config(model, resolved))
        config.init_lora_weights = True
        wrapped = self.wrapped(model, resolved, config)
        set_peft_model_state_dict(wrapped, own)
        for name, layer in _layers(wrapped):
            base = cast(LinearLayer, layer.get_base_layer())
            a, b = (start[_key(name, factor)].to(base.weight.device) for factor in _FACTORS)
            residual = as_matrix(base, base.weight.data).float() - layer.scaling["default"] * b @ a
            base.weight.data = as_matrix(base, residual.to(base.weight.dtype)).contiguous()
        setattr(wrapped, _ATTRIBUTE, Start(start))
        return wrapped


class Start:
    """A0 and B0 of every layer, by the names that PEFT saves factors under; on disk, for they are seldom read."""

    def __init__(self, tensors: dict[str, Tensor]):
        self._blank = {name: tensor.detach() for name, tensor in tensors.items() if has_no_data(tensor)}
        if not self._blank:
            folder = Path(tempfile.mkdtemp(prefix="rowsft-start-"))
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            self._path = folder / SAFETENSORS_WEIGHTS_NAME
            save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, self._path)

    def tensors(self) -> dict[str, Tensor]:
        """Return them, on the CPU; without data where the model had none."""
        return dict(self._blank) or load_file(self._path)

    def __deepcopy__(self, memo: dict) -> "Start":
        return self

    @contextmanager
    def put_back(self, model: PeftModel) -> Iterator[dict[str, "ChangedFactors"]]:
        """`model` computes inside what it did before training. Yields what training has changed, by layer."""
        start, changed = self.tensors(), {}
        tuned: list[tuple[nn.Parameter, Tensor]] = []
        for name, layer in _layers(model):
            factors = [cast(nn.Parameter, part["default"].weight) for part in (layer.lora_A, layer.lora_B)]
            before = [
                start[_key(name, factor)].to(parameter) for factor, parameter in zip(_FACTORS, factors, strict=True)
            ]
            changed[name] = ChangedFactors(
                cast(nn.Module, layer), _change(layer.scaling["default"], [p.data for p in factors], before)
            )
            for parameter, values in zip(factors, before, strict=True):
                tuned.append((parameter, parameter.data))
                parameter.data = values
        try:
            yield changed
        finally:
            for parameter, values in tuned:
                parameter.data = values


class ChangedFactors(NamedTuple):
    """A layer of the adapter, and what gives the change of its weight since the start, (d_out, d_in) in float64."""

    layer: nn.Module
    change: Callable[[], Tensor]


def start_of(model: nn.Module) -> Start | None:
    """Return what a method has taken out of the base weights of `model`; None where it has not."""
    return getattr(model, _ATTRIBUTE, None)


def joined(own: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a saved adapter's tensors with every A as [A; A0] and every B as [B, -B0]; the head's as they are."""
    tensors = dict(own)
    for name, axis in _named_factors(own):
        part = start[name].to(own[name])
        tensors[name] = torch.cat([own[name], -part if axis else part], axis).contiguous()
    return tensors


def parted(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what `joined` was made of."""
    own, start = dict(tensors), {}
    for name, axis in _named_factors(tensors):
        first, second = tensors[name].chunk(2, axis)
        own[name], start[name] = first.contiguous(), (-second if axis else second).contiguous()
    return own, start


def _as_lora(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the joined adapter: twice the rank and alpha, so the same factor, and no start to make."""
    doubled = {key: 2 * config[key] for key in ("r", "lora_alpha")}
    patterns = {key: {n: 2 * v for n, v in config[key].items()} for key in ("rank_pattern", "alpha_pattern")}
    return {**config, **doubled, **patterns, "init_lora_weights": True}


def _named_factors(names: Mapping[str, Any]) -> list[tuple[str, int]]:
    return [(name, axis) for name in names for ending, axis in _FACTORS.items() if name.endswith(ending)]


def _factors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensors[name] for name, _ in _named_factors(tensors)}


def _layers(model: PeftModel) -> list[tuple[str, LoraLayer]]:
    return [(n, module) for n, module in model.get_base_model().named_modules() if isinstance(module, LoraLayer)]


def _key(layer: str, factor: str) -> str:
    return f"base_model.model.{layer}{factor}"


def _change(scaling: float, tuned: list[Tensor], before: list[Tensor]) -> Callable[[], Tensor]:
    def change() -> Tensor:
        (a, b), (a0, b0) = ([factor.double() for factor in pair] for pair in (tuned, before))
        return scaling * (b @ a - b0 @ a0)

    return change
