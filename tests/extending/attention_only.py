"""Attention alone (Touvron et al., arXiv 2203.09795): the layers of attention are trained, and the task head."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from torch import nn

from rowsft.errors import UserError
from rowsft.method_info import MethodInfo
from rowsft.methods.base import ResolvedMethod
from rowsft.methods.plain_method import PlainMethod, save_trained, trainable_counts
from rowsft.selection.budget import Budget
from rowsft.selection.families import is_attention
from rowsft.selection.targets import Targets, head_names


@dataclass
class AttentionOnly(PlainMethod):
    """Train every parameter of the attention modules; no budget applies."""

    info: ClassVar[MethodInfo] = MethodInfo(
        "attention_only", "attention only", order=25, colour="#994455", marker="p", budgeted=False
    )

    name: str = info.name
    # Layers of attention that stay frozen, such as [query, key].
    frozen: list[str] = field(default_factory=list)
    head_modules: list[str] = field(default_factory=list, init=False)

    def solve(self, budget: Budget, model: nn.Module, targets: Targets) -> ResolvedMethod:
        """Return the names of the parameters that are trained. Raises UserError where there is none."""
        head = head_names(model, targets.head_modules)
        trained = {
            name: parameter.numel()
            for name, parameter in model.named_parameters()
            if is_attention(name) and not _inside(name, head) and not set(name.split(".")) & set(self.frozen)
        }
        if not trained:
            raise UserError("method=attention_only: this model has no attention to train; use another method")
        return ResolvedMethod({"trained": list(trained), "head_modules": head}, achieved=sum(trained.values()))

    def attach(self, model: nn.Module, resolved: ResolvedMethod) -> nn.Module:
        """Freeze everything but attention and the head."""
        model.requires_grad_(False)
        self.head_modules = resolved.values["head_modules"]
        for name in self.head_modules:
            model.get_submodule(name).requires_grad_(True)
        for name in resolved.values["trained"]:
            model.get_parameter(name).requires_grad_(True)
        return model

    def trainable(self, model: nn.Module) -> dict[str, int]:
        """Return the counts of trainable parameters; "adapter" is attention."""
        return trainable_counts(model, lambda name: _inside(name, self.head_modules))

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write attention and head as attention.safetensors."""
        save_trained(model, folder / "attention.safetensors")


def _inside(name: str, modules: list[str]) -> bool:
    """Whether a parameter belongs to one of the modules."""
    return name.startswith(tuple(f"{module}." for module in modules))
