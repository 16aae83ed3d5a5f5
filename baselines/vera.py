"""VeRA (Kopiczko, Blankevoort and Asano, arXiv 2310.11454) through PEFT, as the paper has it.

W + diag(b) B diag(d) A, with random A and B that all layers share and nobody trains; a smaller layer takes the first
rows and columns of them. Its size hardly moves: one more r costs one parameter a layer beside the d_out of b, and even
r = d_in trains no more than LoRA of rank 1. So no budget applies; `method.r` sets r.

Left out: the paper's own learning rate for the task head.
"""

from dataclasses import dataclass
from typing import ClassVar

from peft import VeraConfig
from torch import nn

from rowsft.errors import UserError
from rowsft.layers.matrix import layer_shape
from rowsft.method_info import MethodInfo
from rowsft.methods.base import Method, ResolvedMethod
from rowsft.methods.fixed_size import of_fixed_size
from rowsft.methods.peft_method import PeftMethod, check_dropout, transposed
from rowsft.selection.budget import Budget
from rowsft.selection.targets import Targets, eligible_layers, head_names


@dataclass
class Vera(PeftMethod):
    """b (d_out) and d (r) of every layer are trained. The keys are explained in conf/method/vera.yaml."""

    info: ClassVar[MethodInfo] = MethodInfo(
        "vera", "VeRA", 70, "#332288", "H", budgeted=False, adapter_prefix="vera_lambda_"
    )

    name: str = info.name
    r: int = 256
    d_initial: float = 0.1
    dropout: float = 0.0
    seed: int = 0

    def __post_init__(self):
        if isinstance(self.r, bool) or not isinstance(self.r, int) or self.r < 1:
            raise UserError(f"method.r={self.r}: expected a whole number above 0")
        check_dropout(self.dropout)
        if self.d_initial == 0:
            raise UserError(
                "method.d_initial=0: with b at 0 nothing would ever be trained; set a number such as 0.1 or 1e-7"
            )

    def solve(self, budget: Budget, model: nn.Module, targets: Targets) -> ResolvedMethod:
        """See `Method.solve`: d_out + r parameters of every eligible layer."""
        layers = eligible_layers(model, targets)
        values = {"r": self.r, "target_modules": list(layers), "head_modules": head_names(model, targets.head_modules)}
        parameters = sum(layer_shape(layer)[0] + self.r for layer in layers.values())
        return of_fixed_size(self.name, budget, values, parameters, f"set by method.r={self.r}")

    def peft_config(self, model: nn.Module, resolved: ResolvedMethod) -> VeraConfig:
        """PEFT's configuration; A and B are saved along, so that no random number generator has to draw them again."""
        return VeraConfig(
            r=self.r,
            d_initial=self.d_initial,
            vera_dropout=self.dropout,
            projection_prng_key=self.seed,
            fan_in_fan_out=transposed(model, resolved.values["target_modules"]),
        )


METHOD: type[Method] = Vera
