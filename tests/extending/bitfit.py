"""BitFit (Ben Zaken et al., arXiv 2106.10199): the biases of the model are trained, and the task head."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from torch import nn

from rowsft.errors import UserError
from rowsft.method_info import MethodInfo
from rowsft.methods.base import ResolvedMethod
from rowsft.methods.plain_method import PlainMethod, save_trained, trainable_counts
from rowsft.selection.budget import Budget
from rowsft.selection.targets import Targets, head_names


@dataclass
class BitFit(PlainMethod):
    """Train every bias outside the head; no budget applies."""

    info: ClassVar[MethodInfo] = MethodInfo("bitfit", "BitFit", order=25, colour="#882255", marker="p", budgeted=False)

    name: str = info.name
    # Parts of the model whose biases stay frozen, such as [attention].
    frozen: list[str] = field(default_factory=list)
    head_modules: list[str] = field(default_factory=list, init=False)

    def solve(self, budget: Budget, model: nn.Module, targets: Targets) -> ResolvedMethod:
        """Return the names of the biases that are trained. Raises UserError where there is none."""
        head = head_names(model, targets.head_modules)
        biases = {
            name: parameter.numel()
            for name, parameter in model.named_parameters()
            if name.endswith("bias") and not _inside(name, head) and not set(name.split(".")) & set(self.frozen)
        }
        if not biases:
            raise UserError("method=bitfit: this model has no bias to train; use another method")
        return ResolvedMethod({"biases": list(biases), "head_modules": head}, achieved=sum(biases.values()))

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
        """Return the counts of trainable parameters; "adapter" is the biases."""
        return trainable_counts(model, lambda name: _inside(name, self.head_modules))

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write biases and head as bitfit.safetensors."""
        save_trained(model, folder / "bitfit.safetensors")


def _inside(name: str, modules: list[str]) -> bool:
    """Whether a parameter belongs to one of the modules."""
    return name.startswith(tuple(f"{module}." for module in modules))
