"""LoRA whose task head is stepped at a tenth of the learning rate: parameter groups of one's own."""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from rowsft.baselines.lora import Lora
from rowsft.method_info import MethodInfo
from rowsft.methods.base import OptimizedMethod, ParameterGroup


@dataclass
class SlowHead(OptimizedMethod, Lora):
    """LoRA in two groups."""

    info: ClassVar[MethodInfo] = replace(Lora.info, name="slow_head", title="LoRA, slow head", order=35)
    strategies: ClassVar[tuple[str, ...]] = ("ddp",)

    name: str = info.name
    # The head's learning rate over the adapter's.
    head_factor: float = 0.1

    def parameter_groups(self, model: nn.Module) -> list[ParameterGroup]:
        """Return adapter and head; PEFT keeps the trained head under modules_to_save."""
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        head = {name: p for name, p in trained.items() if ".modules_to_save." in name}
        adapter = [p for name, p in trained.items() if name not in head]
        return [ParameterGroup("adapter", adapter), ParameterGroup("head", list(head.values()), self.head_factor)]
