"""OFT (Qiu et al., arXiv 2306.07280) through PEFT, in the form of OFTv2 (Qiu et al., arXiv 2506.19847)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from peft import OFTConfig
from torch import nn

from rowsft.errors import UserError
from rowsft.layers.matrix import LinearLayer, layer_shape
from rowsft.method_info import MethodInfo
from rowsft.methods.base import Method, ResolvedMethod
from rowsft.methods.peft_method import OneSizeMethod, check_linear
from rowsft.selection.budget import Unit


@dataclass
class Oft(OneSizeMethod):
    """W R with R (d_in, d_in) of rotations in blocks of b inputs, each given by b (b - 1) / 2 numbers.

    PEFT rotates the input. Left out: its dropout of whole blocks, sharing a block, and constrained OFT. Keys:
    conf/method/oft.yaml.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        "oft", "OFT", 44, "#6699CC", "d", sizes=("block_size",), adapter_prefix="oft_"
    )
    tuner: ClassVar[str] = "OFT"

    name: str = info.name
    block_size: int | None = None
    cayley_neumann: bool = True

    def __post_init__(self):
        if self.block_size is not None and self.block_size < 2:
            raise UserError(f"method.block_size={self.block_size}: expected a whole number, at least 2")

    def units(self, layers: Mapping[str, LinearLayer]) -> dict[str, Unit]:
        """Blocks of b inputs cost d_in (b - 1) / 2; counts of units are block sizes.

        Raises UserError for Conv1D, for an odd number of inputs, and where method.block_size does not divide a layer's.
        """
        check_linear(self.name, self.tuner, layers)
        units = {}
        for name, layer in layers.items():
            _, d_in = layer_shape(layer)
            if d_in % 2 or (self.block_size is not None and d_in % self.block_size):
                size = "an even block size" if self.block_size is None else f"method.block_size={self.block_size}"
                raise UserError(
                    f"method={self.name}: {size} does not divide the {d_in} inputs of layer {name}; choose one that "
                    "divides the inputs of all layers, or exclude the layer with model.exclude_modules"
                )
            units[name] = Unit(d_in // 2, first=-(d_in // 2), most=d_in, noun="inputs")
        return units

    def fit(self, units: dict[str, Unit], params: int, clip: bool, source: str) -> dict[str, int]:
        """The largest block size that divides the inputs of every layer, and fits. Raises UserError for none."""
        costs = {size: sum(unit.total(size) for unit in units.values()) for size in _sizes(units)}
        affordable = [size for size, cost in costs.items() if cost <= params]
        if not affordable:
            least = min(costs)
            raise UserError(
                f"{source} allows {params} parameters, less than the {costs[least]} of OFT's smallest blocks, of "
                f"{least} inputs; raise the budget"
            )
        largest = max(costs)
        if params > costs[largest] and not clip:
            raise UserError(
                f"{source} asks for {params} parameters, but OFT's largest blocks, of {largest} inputs, have "
                f"{costs[largest]}; lower the budget or set budget.clip=true"
            )
        return dict.fromkeys(units, max(affordable))

    def values(self, common: int, pattern: dict[str, int]) -> dict[str, Any]:
        """block_size: the same in every layer."""
        return {"block_size": min([common, *pattern.values()])}

    def achieved(self, units: dict[str, Unit], counts: dict[str, int], values: dict[str, Any]) -> int:
        """The parameters of that block size in every layer."""
        return sum(units[name].total(values["block_size"]) for name in counts)

    def coarseness(self, units: dict[str, Unit]) -> str:
        """There is one block size, and it divides the inputs of all layers."""
        sizes = ", ".join(map(str, _sizes(units)[:12]))
        return f"PEFT's OFT has one block size for all layers, which divides their inputs ({sizes} ...)"

    def peft_config(self, model: nn.Module, resolved: ResolvedMethod) -> OFTConfig:
        """PEFT's defaults but for the block size."""
        return OFTConfig(r=0, oft_block_size=resolved.values["block_size"], use_cayley_neumann=self.cayley_neumann)


def _sizes(units: Mapping[str, Unit]) -> list[int]:
    """The block sizes that every layer can have, ascending."""
    common = math.gcd(*(unit.most for unit in units.values()))
    return [size for size in range(2, common + 1) if common % size == 0]


METHOD: type[Method] = Oft
