"""HiRA (Huang et al., ICLR 2025, openreview TwJrTz9cRS) through PEFT, with PEFT's default initialisation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from peft import HiraConfig
from torch import nn
from transformers.pytorch_utils import Conv1D

from rowsft.layers.matrix import LinearLayer, layer_shape
from rowsft.method_info import MethodInfo
from rowsft.methods.base import Method, ResolvedMethod
from rowsft.methods.peft_method import OneSizeMethod, check_dropout
from rowsft.selection.budget import Unit


@dataclass
class Hira(OneSizeMethod):
    """W * (1 + B A), entry by entry, with A (r, d_in) and B (d_out, r). Keys: conf/method/hira.yaml.

    The change W * B A has a high rank. PEFT makes it, a dense matrix, in every forward.
    """

    info: ClassVar[MethodInfo] = MethodInfo("hira", "HiRA", 42, "#E69F00", ">", sizes=("r",), adapter_prefix="hira_")
    tuner: ClassVar[str] = "HiRA"

    name: str = info.name
    r: int | None = None
    dropout: float = 0.0

    def __post_init__(self):
        check_dropout(self.dropout)

    def units(self, layers: Mapping[str, LinearLayer]) -> dict[str, Unit]:
        """One more rank costs d_in + d_out."""
        return {name: Unit(sum(layer_shape(layer)), noun="ranks") for name, layer in layers.items()}

    def peft_config(self, model: nn.Module, resolved: ResolvedMethod) -> HiraConfig:
        """PEFT's configuration has a rank_pattern, too, which its layers do not read (0.21.2)."""
        transposed = [isinstance(model.get_submodule(name), Conv1D) for name in resolved.values["target_modules"]]
        return HiraConfig(r=resolved.values["r"], hira_dropout=self.dropout, fan_in_fan_out=all(transposed))


METHOD: type[Method] = Hira
