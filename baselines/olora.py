"""OLoRA (Büyükakyüz, arXiv 2406.01775) through PEFT: LoRA that starts from a QR decomposition of W."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from rowsft.baselines.lora import Lora
from rowsft.layers.matrix import LinearLayer
from rowsft.method_info import MethodInfo
from rowsft.methods.base import Method
from rowsft.methods.peft_method import check_linear
from rowsft.methods.residual import ResidualMethod
from rowsft.selection.budget import Unit


@dataclass
class Olora(ResidualMethod, Lora):
    """B is the first r columns of Q, A the first r rows of R, taken out of W = Q R. Keys: conf/method/olora.yaml."""

    info: ClassVar[MethodInfo] = replace(Lora.info, name="olora", title="OLoRA", order=34, colour="#AA4499", marker="h")
    compared: ClassVar[dict[str, list[str]]] = {}

    name: str = info.name
    scaling: float | None = 0.5

    @property
    def initialisation(self) -> str:
        """PEFT's name of it."""
        return "olora"

    def units(self, layers: Mapping[str, LinearLayer]) -> dict[str, Unit]:
        """As `ResidualMethod.units`; a Conv1D's weight PEFT would decompose the wrong way round."""
        check_linear(self.name, "OLoRA", layers)
        return super().units(layers)


METHOD: type[Method] = Olora
