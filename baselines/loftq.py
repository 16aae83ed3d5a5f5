"""LoftQ (Li et al., arXiv 2310.08659): LoRA on a base in 4 bits that starts from what quantising loses."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from rowsft.baselines.lora import Lora
from rowsft.errors import UserError
from rowsft.layers.matrix import LinearLayer, has_no_data
from rowsft.layers.packing import LIBRARIES, packed
from rowsft.layers.quantised import dequantised, is_quantised
from rowsft.method_info import MethodInfo
from rowsft.methods import replaced_base
from rowsft.methods.base import Method, ResolvedMethod
from rowsft.models.originals import originals_of
from rowsft.progress import each
from rowsft.quantisation.low_rank import Factors
from rowsft.quantisation.starts import loftq, pissa
from rowsft.selection.budget import Unit

STARTS = {"loftq": loftq, "pissa": pissa}


@dataclass
class Loftq(Lora):
    """base + B A, both from alternating steps, the base in place of the loaded one. Keys: conf/method/loftq.yaml.

    PEFT's own LoftQ computes on a GPU alone, and on a base that is quantised already (`replace_lora_weights_loftq`)
    takes the first of the steps. Here every step packs the rest as the base is packed, and the last base is kept.
    """

    info: ClassVar[MethodInfo] = replace(Lora.info, name="loftq", title="LoftQ", order=39, colour="#44AA99", marker="P")
    compared: ClassVar[dict[str, list[str]]] = {}

    name: str = info.name
    scaling: float | None = 1.0
    alpha: float | None = field(default=None, init=False)
    start: str = "loftq"
    steps: int = 5
    svd_iterations: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.scaling != 1:
            raise UserError(
                f"method.scaling={self.scaling}: expected 1, with which base and adapter make up the weight"
            )
        if self.start not in STARTS:
            raise UserError(f"method.start={self.start}: unknown; use one of {', '.join(STARTS)}")
        if self.steps < 1:
            raise UserError(f"method.steps={self.steps}: expected 1 or more")
        if self.svd_iterations is not None and self.svd_iterations < 0:
            raise UserError(f"method.svd_iterations={self.svd_iterations}: expected 0 or more, or null")

    def units(self, layers: Mapping[str, LinearLayer]) -> dict[str, Unit]:
        """One more rank costs d_in + d_out. Raises UserError for a layer that is not held in 4 bits."""
        for name, layer in layers.items():
            if not is_quantised(layer) or not hasattr(layer, "quant_state"):
                raise UserError(
                    f"method={self.name}: layer {name} is not held in 4 bits; set model.quantize=nf4, or use "
                    "method=lora"
                )
        return super().units(layers)

    def attach(self, model: nn.Module, resolved: ResolvedMethod) -> PeftModel:
        """See `Method.attach`, but for where it starts: nearer to the weights than the quantised base is."""
        factors = self._replace_bases(model, resolved)
        wrapped = super().attach(model, resolved)
        layer: Any
        for name, layer in _adapted(wrapped).items():
            if name in factors:
                layer.lora_B["default"].weight.data.copy_(factors[name].b)
                layer.lora_A["default"].weight.data.copy_(factors[name].a)
        return wrapped

    def save(self, model: PeftModel, folder: Path) -> None:
        """See `Method.save`: the adapter, and the codes and scales of the base that it belongs to."""
        super().save(model, folder)
        layers = {name: layer.get_base_layer() for name, layer in _adapted(model).items()}
        replaced_base.write(layers, folder)

    def load(self, model: nn.Module, resolved: ResolvedMethod, folder: Path) -> PeftModel:
        """See `ReloadedMethod.load`: on the base that was saved along."""
        replaced_base.read(model, resolved.values["target_modules"], folder)
        return super().load(model, resolved, folder)

    def _replace_bases(self, model: nn.Module, resolved: ResolvedMethod) -> dict[str, Factors]:
        """Put each layer's last base in its place; returns what its adapter starts from. Nothing without data."""
        layers: dict[str, Any] = {name: model.get_submodule(name) for name in resolved.values["target_modules"]}
        if any(has_no_data(layer.weight) for layer in layers.values()):
            return {}
        originals = originals_of(model)
        if originals is None or LIBRARIES[originals.kind] != "bitsandbytes":
            raise UserError(
                f"method={self.name}: the weights that the base was made from are not at hand; set model.quantize=nf4 "
                "and give the checkpoint before quantisation"
            )
        factors = {}
        names = each("decomposing what quantising loses", list(layers))
        for (name, weight), _ in zip(originals.read(model, layers), names, strict=True):
            rank = resolved.values["rank_pattern"].get(name, resolved.values["r"])
            packer = _Packer(layers[name], weight.dtype, originals.kind)
            *_, last = STARTS[self.start](weight.float(), packer, rank, self.steps, self.svd_iterations)
            replaced_base.put(layers[name], packer.last)
            factors[name] = last.factors
        return factors


class _Packer:
    """Quantises as the base is quantised. last: the packed weight of the latest call."""

    def __init__(self, layer: nn.Linear, dtype: torch.dtype, kind: str):
        self._shape, self._dtype, self._kind = (layer.in_features, layer.out_features), dtype, kind
        self.last: Any = None

    def __call__(self, weight: Tensor) -> Tensor:
        plain = nn.Linear(*self._shape, bias=False, device="meta")
        plain.weight = nn.Parameter(weight.to(self._dtype), requires_grad=False)
        made = packed(plain, self._kind)
        self.last = made.weight
        stands_for = dequantised(made)
        assert stands_for is not None, "packed here"
        return stands_for.float()


def _adapted(model: PeftModel) -> dict[str, LoraLayer]:
    return {name: layer for name, layer in model.get_base_model().named_modules() if isinstance(layer, LoraLayer)}


METHOD: type[Method] = Loftq
