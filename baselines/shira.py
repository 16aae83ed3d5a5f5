"""SHiRA (Bhardwaj et al., arXiv 2406.13175) through PEFT: single entries of W, chosen at random, are trained."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from peft import ShiraConfig
from torch import nn

from rowsft.layers.matrix import LinearLayer, layer_shape
from rowsft.method_info import MethodInfo
from rowsft.methods.base import Method, ResolvedMethod
from rowsft.methods.peft_method import OneSizeMethod, check_linear, check_not_packed
from rowsft.selection.budget import Unit


@dataclass
class Shira(OneSizeMethod):
    """r (d_in + d_out) entries of W in every layer, as many as LoRA of rank r. Keys: conf/method/shira.yaml.

    PEFT keeps them as a sparse matrix that is added to a copy of W in every forward.
    """

    info: ClassVar[MethodInfo] = MethodInfo("shira", "SHiRA", 50, "#CC79A7", "v", sizes=("r",), adapter_prefix="shira_")
    tuner: ClassVar[str] = "SHiRA"

    name: str = info.name
    r: int | None = None
    seed: int = 0

    def units(self, layers: Mapping[str, LinearLayer]) -> dict[str, Unit]:
        """One more r costs d_in + d_out entries of d_in d_out. Raises UserError for others than a plain nn.Linear."""
        check_linear(self.name, self.tuner, layers)
        check_not_packed(self.name, self.tuner, layers)
        units = {}
        for name, layer in layers.items():
            d_out, d_in = layer_shape(layer)
            units[name] = Unit(d_in + d_out, most=d_in * d_out // (d_in + d_out))
        return units

    def peft_config(self, model: nn.Module, resolved: ResolvedMethod) -> ShiraConfig:
        """PEFT's own random mask: the same stream in every layer."""
        config = ShiraConfig(r=resolved.values["r"], random_seed=self.seed)
        config.mask_fn = _once_a_shape(config.mask_fn)
        return config


def _once_a_shape(mask_fn: Callable) -> Callable:
    """`mask_fn` that draws once for all layers of a shape, whose masks are the same.

    A permutation of 59 million entries takes a second, and Llama-3-8B has 96 such layers. Masks are kept on the CPU: a
    GPU's memory is the model's.
    """
    masks: dict[tuple, torch.Tensor] = {}

    def mask(base_layer: nn.Linear, r: int, **kwargs) -> torch.Tensor:
        shape = tuple(base_layer.weight.shape)
        if (shape, r) not in masks:
            masks[shape, r] = mask_fn(base_layer, r, **kwargs).cpu()
        return masks[shape, r].to(base_layer.weight.device)

    return mask


METHOD: type[Method] = Shira
