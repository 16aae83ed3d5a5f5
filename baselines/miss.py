"""MiSS (Kang and Yin, arXiv 2409.15371, earlier called Bone) through PEFT: shards of a weight share one update."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from peft import MissConfig
from torch import nn

from rowsft.layers.matrix import LinearLayer, layer_shape
from rowsft.method_info import MethodInfo
from rowsft.methods.base import Method, ResolvedMethod
from rowsft.methods.peft_method import OneSizeMethod, check_dropout, check_linear
from rowsft.selection.budget import Unit


@dataclass
class Miss(OneSizeMethod):
    """The columns of W are cut into shards of r; D^T (d_out, r) is added to each. Keys: conf/method/miss.yaml.

    PEFT computes it as a product of D (r, d_out) with the sum of the input's shards. Its variants bat and mini are left
    out.
    """

    info: ClassVar[MethodInfo] = MethodInfo("miss", "MiSS", 43, "#661100", "X", sizes=("r",), adapter_prefix="miss_")
    tuner: ClassVar[str] = "MiSS"

    name: str = info.name
    r: int | None = None
    dropout: float = 0.0

    def __post_init__(self):
        check_dropout(self.dropout)

    def units(self, layers: Mapping[str, LinearLayer]) -> dict[str, Unit]:
        """One more r costs d_out; a shard has d_in columns at most. Raises UserError for Conv1D."""
        check_linear(self.name, self.tuner, layers)
        shapes = {name: layer_shape(layer) for name, layer in layers.items()}
        return {name: Unit(d_out, most=d_in, noun="columns") for name, (d_out, d_in) in shapes.items()}

    def peft_config(self, model: nn.Module, resolved: ResolvedMethod) -> MissConfig:
        """The last shard may be narrower: PEFT fills the input up with zeros."""
        return MissConfig(r=resolved.values["r"], miss_dropout=self.dropout)


METHOD: type[Method] = Miss
