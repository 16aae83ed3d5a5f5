"""LoRA with one factor fixed: A stays at its random start, B alone is trained (Zhu et al., arXiv 2402.16842).

Through PEFT, with its uniform start of A; the paper's random orthogonal A and its choice of A from W are left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

from rowsft.baselines.lora import Lora
from rowsft.layers.matrix import LinearLayer, layer_shape
from rowsft.method_info import MethodInfo
from rowsft.methods.base import Method, ResolvedMethod
from rowsft.selection.budget import Unit


@dataclass
class Cla(Lora):
    """W + scaling * B A with A (r, d_in) fixed and B (d_out, r) trained. Keys: conf/method/cla.yaml."""

    info: ClassVar[MethodInfo] = replace(Lora.info, name="cla", title="cLA", order=35, colour="#999933", marker="<")
    compared: ClassVar[dict[str, list[str]]] = {}

    name: str = info.name

    def units(self, layers: Mapping[str, LinearLayer]) -> dict[str, Unit]:
        """One more rank trains d_out parameters; with d_in of them A can be any basis, and more would add nothing."""
        shapes = {name: layer_shape(layer) for name, layer in layers.items()}
        return {name: Unit(d_out, most=d_in, noun="ranks") for name, (d_out, d_in) in shapes.items()}

    def attach(self, model: nn.Module, resolved: ResolvedMethod) -> PeftModel:
        """See `Method.attach`."""
        return _with_fixed_a(super().attach(model, resolved))

    def load(self, model: nn.Module, resolved: ResolvedMethod, folder: Path) -> PeftModel:
        """See `ReloadedMethod.load`."""
        return _with_fixed_a(super().load(model, resolved, folder))


def _with_fixed_a(model: PeftModel) -> PeftModel:
    """Turn every A into a buffer: PEFT makes parameters of an active adapter trainable, and FSDP would shard them."""
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            for product in layer.lora_A.values():
                fixed = product.get_parameter("weight").detach()
                del product.weight
                product.register_buffer("weight", fixed)
    return model


METHOD: type[Method] = Cla
