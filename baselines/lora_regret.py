"""LoRA as "LoRA Without Regret" has it (Schulman and Thinking Machines Lab, 2025): alpha = 32, divided by the rank."""

from dataclasses import dataclass, replace
from typing import ClassVar

from rowsft.baselines.lora import Lora
from rowsft.method_info import MethodInfo
from rowsft.methods.base import Method


@dataclass
class LoraRegret(Lora):
    """`Lora` with scaling=null and alpha=32, under a name of its own. Keys: conf/method/lora_regret.yaml.

    Tables can then hold it beside LoRA, which other rows are held against, and grids tune its rate apart.
    """

    info: ClassVar[MethodInfo] = replace(
        Lora.info, name="lora_regret", title="LoRA, alpha 32", order=31, colour="#44AA99", marker="s"
    )
    compared: ClassVar[dict[str, list[str]]] = {}

    name: str = info.name
    scaling: float | None = None
    alpha: float | None = 32.0


METHOD: type[Method] = LoraRegret
