"""LN-tuning (Zhao et al., arXiv 2312.11420) through PEFT: the model's normalisations are trained, and nothing else.

PEFT trains a copy of each. This is the paper's LayerNorm-simple; left out is what its full form trains besides in a
vision-language model (connector, embeddings and output layer).
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from peft import LNTuningConfig, PeftModel
from torch import nn

from rowsft.errors import UserError
from rowsft.method_info import MethodInfo
from rowsft.methods.base import Method, ResolvedMethod
from rowsft.methods.fixed_size import of_fixed_size
from rowsft.methods.peft_method import PeftMethod
from rowsft.selection.budget import Budget
from rowsft.selection.targets import Targets, head_names


@dataclass
class LnTuning(PeftMethod):
    """Train the vectors of all normalisations outside the head, whatever target_modules names."""

    info: ClassVar[MethodInfo] = MethodInfo(
        "ln_tuning", "LN-tuning", 73, "#882255", "X", budgeted=False, adapter_prefix="ln_tuning_"
    )

    name: str = info.name

    def solve(self, budget: Budget, model: nn.Module, targets: Targets) -> ResolvedMethod:
        """See `Method.solve`. Raises UserError for a model without normalisations that have parameters."""
        head = head_names(model, targets.head_modules)
        inside = tuple(f"{module}." for module in head)
        norms = {
            name: sum(parameter.numel() for parameter in module.parameters())
            for name, module in model.named_modules()
            if _is_norm(module) and not f"{name}.".startswith(inside)
        }
        if not norms:
            raise UserError(
                f"method={self.name}: {type(model).__name__} has no normalisation with parameters outside its head; "
                "use another method, such as method=bitfit or method=lora"
            )
        return of_fixed_size(
            self.name, budget, {"target_modules": list(norms), "head_modules": head}, sum(norms.values())
        )

    def peft_config(self, model: nn.Module, resolved: ResolvedMethod) -> LNTuningConfig:
        """PEFT's configuration."""
        return LNTuningConfig()

    def attach(self, model: nn.Module, resolved: ResolvedMethod) -> PeftModel:
        """See `PeftMethod.attach`."""
        with _without_alarm():
            return super().attach(model, resolved)

    def load(self, model: nn.Module, resolved: ResolvedMethod, folder: Path) -> PeftModel:
        """See `PeftMethod.load`."""
        with _without_alarm():
            return super().load(model, resolved, folder)


def _is_norm(module: nn.Module) -> bool:
    """Whether it is a LayerNorm, an RMSNorm or one of their kind: by its class's name, as models bring their own."""
    own = list(module.parameters(recurse=False))
    return type(module).__name__.endswith("Norm") and bool(own) and all(vector.ndim == 1 for vector in own)


@contextmanager
def _without_alarm() -> Iterator[None]:
    # PEFT looks for the features of a linear layer in each norm, and warns of every one.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Unsupported layer type")
        yield


METHOD: type[Method] = LnTuning
