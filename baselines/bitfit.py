"""BitFit (Ben Zaken, Ravfogel and Goldberg, arXiv 2106.10199): every bias of the model is trained, and nothing else.

PEFT has no tuner for it: the biases are trained where they are. Left out: the paper's smaller variant, of the biases of
queries and of the MLP's first layer alone.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from torch import nn

from rowsft.errors import UserError
from rowsft.method_info import MethodInfo
from rowsft.methods.base import Method, ResolvedMethod
from rowsft.methods.fixed_size import of_fixed_size
from rowsft.methods.plain_method import PlainMethod, save_trained, trainable_counts
from rowsft.selection.budget import Budget
from rowsft.selection.targets import Targets, head_names


@dataclass
class BitFit(PlainMethod):
    """Train all biases outside the head, those of norms and embeddings included, whatever target_modules names."""

    info: ClassVar[MethodInfo] = MethodInfo("bitfit", "BitFit", 72, "#999933", "*", budgeted=False)

    name: str = info.name
    head_modules: list[str] = field(default_factory=list, init=False)

    def solve(self, budget: Budget, model: nn.Module, targets: Targets) -> ResolvedMethod:
        """The names of the biases, vectors called `bias` or `..._bias`. Raises UserError where there is none."""
        head = head_names(model, targets.head_modules)
        biases = {
            name: parameter.numel()
            for name, parameter in model.named_parameters()
            if parameter.ndim == 1 and name.endswith("bias") and not _inside(name, head)
        }
        if not biases:
            raise UserError(
                f"method={self.name}: {type(model).__name__} has no bias to train, as most language models of today; "
                "use another method of few parameters, such as method=ln_tuning or method=ia3"
            )
        values = {"biases": list(biases), "head_modules": head}
        return of_fixed_size(self.name, budget, values, sum(biases.values()))

    def attach(self, model: nn.Module, resolved: ResolvedMethod) -> nn.Module:
        """Freeze everything but the biases and the head."""
        model.requires_grad_(False)
        self.head_modules = resolved.values["head_modules"]
        for name in self.head_modules:
            model.get_submodule(name).requires_grad_(True)
        for name in resolved.values["biases"]:
            model.get_parameter(name).requires_grad_(True)
        return model

    def trainable(self, model: nn.Module) -> dict[str, int]:
        """Counts of trainable parameters; "adapter" is the biases."""
        return trainable_counts(model, lambda name: _inside(name, self.head_modules))

    def save(self, model: nn.Module, folder: Path) -> None:
        """bitfit.safetensors: biases and head under their full names."""
        save_trained(model, folder / "bitfit.safetensors")


def _inside(name: str, modules: list[str]) -> bool:
    """Whether a parameter belongs to one of the modules."""
    return name.startswith(tuple(f"{module}." for module in modules))


METHOD: type[Method] = BitFit
