"""LoRA (Hu et al., arXiv 2106.09685) through PEFT, with PEFT's default initialisation."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from peft import LoraConfig
from torch import nn

from rowsft.errors import UserError
from rowsft.layers.matrix import LinearLayer, layer_shape
from rowsft.method_info import MethodInfo
from rowsft.methods.base import Method, ResolvedMethod
from rowsft.methods.peft_method import RankedMethod, check_dropout, transposed
from rowsft.selection.budget import Unit


@dataclass
class Lora(RankedMethod):
    """W + scaling * B A, with A (r, d_in) and B (d_out, r). The keys are explained in conf/method/lora.yaml.

    One of scaling and alpha is given: scaling is the factor in every layer, alpha is divided by a layer's rank.
    """

    info: ClassVar[MethodInfo] = MethodInfo("lora", "LoRA", 30, "#0072B2", "s", sizes=("r",), adapter_prefix="lora_")
    compared: ClassVar[dict[str, list[str]]] = {"": []}
    adapts_torchao: ClassVar[bool] = True
    use_dora: ClassVar[bool] = False
    #: Whether alpha is divided by the root of the rank.
    use_rslora: ClassVar[bool] = False

    name: str = info.name
    r: int | None = None
    scaling: float | None = 2.0
    alpha: float | None = None
    dropout: float = 0.0

    def __post_init__(self):
        if (self.scaling is None) == (self.alpha is None):
            raise UserError(
                f"method.scaling={self.scaling} and method.alpha={self.alpha}: expected one; set the other to null"
            )
        key = "scaling" if self.alpha is None else "alpha"
        if not getattr(self, key) > 0:
            raise UserError(f"method.{key}={getattr(self, key)}: expected a number above 0")
        check_dropout(self.dropout)

    @property
    def factor(self) -> dict[str, float | None]:
        """Which of scaling and alpha is given, as resolved."""
        return {"scaling": self.scaling} if self.alpha is None else {"alpha": self.alpha}

    @property
    def initialisation(self) -> bool | str:
        """PEFT's name of how A and B are initialised; true: A at random, B zero."""
        return True

    def units(self, layers: Mapping[str, LinearLayer]) -> dict[str, Unit]:
        """One more rank costs d_in + d_out."""
        return {name: Unit(sum(layer_shape(layer)), noun="ranks") for name, layer in layers.items()}

    def values(self, common: int, pattern: dict[str, int]) -> dict:
        """r, and rank_pattern for the layers that differ; alpha = scaling * r in every layer, or one alpha for all."""
        return {"r": common, "rank_pattern": pattern, **self.factor}

    def peft_config(self, model: nn.Module, resolved: ResolvedMethod) -> LoraConfig:
        """PEFT reads pattern keys as regular expressions that may match an ending: anchored, each hits one layer."""
        ranks = {f"^{re.escape(name)}": rank for name, rank in resolved.values["rank_pattern"].items()}
        return LoraConfig(
            r=resolved.values["r"],
            # PEFT's hint is a whole number; it computes with any.
            lora_alpha=cast(int, self.alpha_of(resolved.values["r"])),
            rank_pattern=ranks,
            alpha_pattern={} if self.scaling is None else {key: self.alpha_of(rank) for key, rank in ranks.items()},
            lora_dropout=self.dropout,
            use_dora=self.use_dora,
            use_rslora=self.use_rslora,
            init_lora_weights=cast(Any, self.initialisation),
            fan_in_fan_out=transposed(model, resolved.values["target_modules"]),
        )

    def alpha_of(self, rank: int) -> float:
        """What PEFT divides by the rank, in a layer of that rank."""
        return self.alpha if self.scaling is None else self.scaling * rank  # type: ignore[return-value]  # one is given


METHOD: type[Method] = Lora
