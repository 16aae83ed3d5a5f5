"""LoRA-FA (Zhang et al., arXiv 2308.03303) through PEFT and its optimizer: LoRA whose A stays as it is drawn."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import PeftModel
from peft.optimizers import create_lorafa_optimizer
from torch import nn

from rowsft.baselines.lora import Lora
from rowsft.layers.matrix import LinearLayer, layer_shape
from rowsft.method_info import MethodInfo
from rowsft.methods.base import Method, OptimizedMethod, ResolvedMethod
from rowsft.selection.budget import Unit


@dataclass
class LoraFA(OptimizedMethod, Lora):
    """B (d_out, r) alone is trained, and backward keeps no layer's input but A x (r). Keys: conf/method/lora_fa.yaml.

    PEFT's optimizer multiplies B's gradient by (A A^T)^-1 / s^2, a product that it takes in bfloat16, and steps by
    AdamW with an epsilon of 1e-6, in which the task head is stepped, too.
    """

    info: ClassVar[MethodInfo] = replace(
        Lora.info, name="lora_fa", title="LoRA-FA", order=37, colour="#3399CC", marker="X"
    )
    compared: ClassVar[dict[str, list[str]]] = {}
    own_optimizer: ClassVar[str | None] = "LoraFAOptimizer"

    name: str = info.name

    def units(self, layers: Mapping[str, LinearLayer]) -> dict[str, Unit]:
        """One more rank costs d_out: A is not trained, and not counted."""
        return {name: Unit(layer_shape(layer)[0], noun="ranks") for name, layer in layers.items()}

    def attach(self, model: nn.Module, resolved: ResolvedMethod) -> PeftModel:
        """LoRA with A frozen."""
        return _without_a(super().attach(model, resolved))

    def load(self, model: nn.Module, resolved: ResolvedMethod, folder: Path) -> PeftModel:
        """See `ReloadedMethod.load`."""
        return _without_a(super().load(model, resolved, folder))

    def make_optimizer(self, model: Any, rate: float, weight_decay: float) -> torch.optim.Optimizer:
        """PEFT's; it reads each layer's own scaling where r and alpha differ between layers."""
        (config,) = model.peft_config.values()
        return create_lorafa_optimizer(model, config.r, config.lora_alpha, rate, weight_decay)


def _without_a(model: PeftModel) -> PeftModel:
    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            parameter.requires_grad_(False)
    return model


METHOD: type[Method] = LoraFA
