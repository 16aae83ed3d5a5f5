"""rsLoRA (Kalajdzievski, arXiv 2312.03732) through PEFT: LoRA whose factor is alpha / sqrt(r) instead of alpha / r."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

from rowsft.baselines.lora import Lora
from rowsft.method_info import MethodInfo
from rowsft.methods.base import Method


@dataclass
class RsLora(Lora):
    """W + alpha / sqrt(r) * B A, r being each layer's own. Keys: conf/method/rslora.yaml."""

    info: ClassVar[MethodInfo] = replace(
        Lora.info, name="rslora", title="rsLoRA", order=32, colour="#332288", marker="p"
    )
    compared: ClassVar[dict[str, list[str]]] = {}
    use_rslora: ClassVar[bool] = True

    name: str = info.name
    scaling: float | None = field(default=None, init=False)
    alpha: float | None = 16.0


METHOD: type[Method] = RsLora
