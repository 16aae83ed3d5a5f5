"""LoRA+ (Hayou et al., arXiv 2402.12354) through PEFT: LoRA whose B is stepped at a multiple of A's learning rate."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from peft.optimizers import create_loraplus_optimizer

from rowsft.baselines.lora import Lora
from rowsft.errors import UserError
from rowsft.method_info import MethodInfo
from rowsft.methods.base import Method, OptimizedMethod, ParameterGroup

# PEFT's order. The second holds adapters of embeddings, which no method here adapts.
_NAMES = ("A", "embeddings", "B", "B, biases")


@dataclass
class LoraPlus(OptimizedMethod, Lora):
    """LoRA in parameter groups. Keys: conf/method/lora_plus.yaml.

    PEFT's grouping, which is the authors': what has one dimension, as the biases of a task head, goes with B; the rest
    of the head with A.
    """

    info: ClassVar[MethodInfo] = replace(
        Lora.info, name="lora_plus", title="LoRA+", order=36, colour="#004D80", marker="P"
    )
    compared: ClassVar[dict[str, list[str]]] = {}
    strategies: ClassVar[tuple[str, ...]] = ("ddp", "fsdp")

    name: str = info.name
    rate_ratio: float = 16.0

    def __post_init__(self):
        super().__post_init__()
        if not self.rate_ratio > 0:
            raise UserError(
                f"method.rate_ratio={self.rate_ratio}: expected a number above 0, 16 as the authors have it"
            )

    def parameter_groups(self, model: Any) -> list[ParameterGroup]:
        """A at the run's rate, B at `rate_ratio` times that."""
        # A rate of 1 leaves each group's factor as its rate.
        by_peft = create_loraplus_optimizer(model, torch.optim.SGD, lr=1.0, loraplus_lr_ratio=self.rate_ratio)
        groups = zip(_NAMES, by_peft.param_groups, strict=True)
        return [ParameterGroup(name, group["params"], group["lr"]) for name, group in groups if group["params"]]


METHOD: type[Method] = LoraPlus
