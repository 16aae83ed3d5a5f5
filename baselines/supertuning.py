"""Super-Tuning (arXiv 2607.09287) through PEFT: the entries of W that are largest in magnitude are trained.

Left out: the paper's activation-weighted choice, which PEFT has not, and its hybrid with LoRA (Supra).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from peft import SupertuningConfig
from torch import nn

from rowsft.layers.matrix import LinearLayer, layer_shape
from rowsft.method_info import MethodInfo
from rowsft.methods.base import Method, ResolvedMethod
from rowsft.methods.peft_method import PeftMethod, check_linear, check_not_packed
from rowsft.methods.sizes import counts_for
from rowsft.selection.budget import Budget, Unit, check_affordable
from rowsft.selection.budget_met import check_met
from rowsft.selection.targets import Targets, eligible_layers, head_names


@dataclass
class Supertuning(PeftMethod):
    """A share of the entries of every layer, the same of each. Keys: conf/method/supertuning.yaml.

    PEFT adds them to a copy of W in every forward.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        "supertuning", "Super-Tuning", 55, "#CC6677", "d", sizes=("ratio",), adapter_prefix="supertuning_"
    )

    tuner: ClassVar[str] = "Super-Tuning"

    name: str = info.name
    ratio: float | None = None
    select_top: bool = True

    def solve(self, budget: Budget, model: nn.Module, targets: Targets) -> ResolvedMethod:
        """See `Method.solve`. Raises UserError for Conv1D and for quantised layers."""
        units = self._units(eligible_layers(model, targets))
        entries = sum(unit.most for unit in units.values())
        spec = self.own_size() or budget.spec()
        if spec.kind in self.sizes:
            share, asked = spec.value, round(spec.value * entries)
        else:
            counts, asked = counts_for(units, spec, (), budget.clip, model, targets, _evenly)
            share = min(1.0, asked / entries)
        sparsity = 1 - share
        counts = _as_peft_counts(units, sparsity)
        tuned = {name: count for name, count in counts.items() if count}
        self.check_something(tuned, spec)
        achieved = sum(tuned.values())
        values = {
            "sparsity": sparsity,
            "target_modules": list(tuned),
            "head_modules": head_names(model, targets.head_modules),
        }
        check_met(self.name, spec.source, asked, achieved, self.coarseness(units))
        return ResolvedMethod(values, asked, achieved, spec.source)

    def coarseness(self, units: dict[str, Unit]) -> str:
        """PEFT's Super-Tuning has one sparsity."""
        return "PEFT's Super-Tuning has one share for all layers, and rounds it down in each"

    def peft_config(self, model: nn.Module, resolved: ResolvedMethod) -> SupertuningConfig:
        """PEFT's configuration; which entries were chosen is saved along."""
        return SupertuningConfig(sparsity=resolved.values["sparsity"], select_top=self.select_top)

    def _units(self, layers: Mapping[str, LinearLayer]) -> dict[str, Unit]:
        check_linear(self.name, self.tuner, layers)
        check_not_packed(self.name, self.tuner, layers)
        units = {}
        for name, layer in layers.items():
            d_out, d_in = layer_shape(layer)
            units[name] = Unit(1, most=d_out * d_in, noun="entries")
        return units


def _evenly(units: Mapping[str, Unit], params: int, clip: bool, source: str) -> dict[str, int]:
    """`rowsft.selection.budget.fit` where all layers give the same share of their entries."""
    check_affordable(units, params, clip, source)
    return _as_peft_counts(units, 1 - min(1.0, params / sum(unit.most for unit in units.values())))


def _as_peft_counts(units: Mapping[str, Unit], sparsity: float) -> dict[str, int]:
    """As many entries of each layer as PEFT makes trainable."""
    return {name: int(unit.most * (1 - sparsity)) for name, unit in units.items()}


METHOD: type[Method] = Supertuning
