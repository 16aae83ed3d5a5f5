"""DoRA (Liu et al., arXiv 2402.09353) through PEFT, whose defaults are kept.

PEFT's form: the weight norm is treated as a constant in the backward pass; without dropout the base layer's product
is used again, with dropout it is computed a second time.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from rowsft.baselines.lora import Lora
from rowsft.layers.matrix import LinearLayer, layer_shape
from rowsft.method_info import MethodInfo
from rowsft.methods.base import Method
from rowsft.selection.budget import Unit


@dataclass
class Dora(Lora):
    """LoRA on the direction of W, plus a trained magnitude (d_out,). Keys: conf/method/dora.yaml."""

    info: ClassVar[MethodInfo] = replace(Lora.info, name="dora", title="DoRA", order=40, colour="#56B4E9", marker="D")
    use_dora: ClassVar[bool] = True

    name: str = info.name

    def units(self, layers: Mapping[str, LinearLayer]) -> dict[str, Unit]:
        """One more rank costs d_in + d_out; the first brings the magnitude along."""
        return {
            name: Unit(sum(layer_shape(layer)), first=layer_shape(layer)[0], noun="ranks")
            for name, layer in layers.items()
        }


METHOD: type[Method] = Dora
