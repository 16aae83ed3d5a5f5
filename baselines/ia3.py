"""(IA)³ (Liu et al., arXiv 2205.05638) through PEFT: trained vectors scale keys, values and hidden units of the MLP.

All scales start at 1. Where attention's three layers are fused into one (GPT-2, Phi-3), its whole output is scaled,
queries included, as PEFT does. Left out: the paper's training recipe (T-Few's losses and pre-trained vectors).
"""

import logging
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from peft import IA3Config
from torch import nn

from rowsft.errors import UserError
from rowsft.layers.matrix import layer_shape
from rowsft.method_info import MethodInfo
from rowsft.methods.base import Method, ResolvedMethod
from rowsft.methods.fixed_size import of_fixed_size
from rowsft.methods.peft_method import PeftMethod, transposed
from rowsft.selection.budget import Budget
from rowsft.selection.families import inner_layers
from rowsft.selection.targets import Targets, eligible_layers, head_names

log = logging.getLogger(__name__)


@dataclass
class Ia3(PeftMethod):
    """A factor for every key, value and hidden unit of the layers that `model.target_modules` names."""

    info: ClassVar[MethodInfo] = MethodInfo("ia3", "IA3", 71, "#44AA99", "h", budgeted=False, adapter_prefix="ia3_")

    adapts_torchao: ClassVar[bool] = True

    name: str = info.name

    def solve(self, budget: Budget, model: nn.Module, targets: Targets) -> ResolvedMethod:
        """See `Method.solve`: d_out of a layer that makes keys or values, d_in of one that takes hidden units.

        Raises UserError for a model whose layers' roles are not known, and where none of these is eligible.
        """
        roles = inner_layers(model, f"method={self.name}", "use another method, such as method=bitfit or method=lora")
        layers = eligible_layers(model, targets)
        missing = [role for role, names in roles.items() if names.isdisjoint(layers)]
        if len(missing) == len(roles):
            examples = ", ".join(sorted(min(names) for names in roles.values() if names))
            raise UserError(
                f"method={self.name}: model.target_modules names none of the layers that make keys and values or take "
                f"hidden units; add some of them, such as {examples}"
            )
        if missing:
            _warn(
                f"method={self.name}: model.target_modules leaves out the layers of {' and '.join(missing)}, which "
                "the paper scales too"
            )
        scaled = set().union(*roles.values())
        inputs = [name for name in layers if name in roles["hidden units"]]
        tuned = {name: layer_shape(layer) for name, layer in layers.items() if name in scaled}
        values = {
            "target_modules": list(tuned),
            "feedforward_modules": inputs,
            "head_modules": head_names(model, targets.head_modules),
        }
        parameters = sum(d_in if name in inputs else d_out for name, (d_out, d_in) in tuned.items())
        return of_fixed_size(self.name, budget, values, parameters)

    def peft_config(self, model: nn.Module, resolved: ResolvedMethod) -> IA3Config:
        """PEFT scales the input of feedforward_modules, and the output of the other target modules."""
        return IA3Config(
            feedforward_modules=resolved.values["feedforward_modules"],
            fan_in_fan_out=transposed(model, resolved.values["target_modules"]),
        )


@cache
def _warn(text: str) -> None:
    log.warning(text)


METHOD: type[Method] = Ia3
