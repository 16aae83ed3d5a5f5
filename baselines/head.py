"""Linear probing: only the task head is trained, the pretrained model stays as it is."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import nn

from rowsft.errors import UserError
from rowsft.method_info import MethodInfo
from rowsft.methods.base import Method, ResolvedMethod
from rowsft.methods.plain_method import PlainMethod, save_trained, trainable_counts
from rowsft.selection.budget import Budget
from rowsft.selection.targets import Targets, head_names


@dataclass
class Head(PlainMethod):
    """Train the task head alone; no budget applies."""

    info: ClassVar[MethodInfo] = MethodInfo("head", "head only", 10, "#7f7f7f", "P", budgeted=False)

    name: str = info.name

    def solve(self, budget: Budget, model: nn.Module, targets: Targets) -> ResolvedMethod:
        """Nothing beside the head. Raises UserError where the task has none."""
        head = head_names(model, targets.head_modules)
        if not head:
            raise UserError("method=head: this task has no head to train (head_modules is empty); use another method")
        return ResolvedMethod({"head_modules": head}, achieved=0)

    def attach(self, model: nn.Module, resolved: ResolvedMethod) -> nn.Module:
        """Freeze everything but the head."""
        model.requires_grad_(False)
        for name in resolved.values["head_modules"]:
            model.get_submodule(name).requires_grad_(True)
        return model

    def trainable(self, model: nn.Module) -> dict[str, int]:
        """Counts of trainable parameters, all of them the head's."""
        return trainable_counts(model, lambda name: True)

    def save(self, model: nn.Module, folder: Path) -> None:
        """head.safetensors: the head's tensors under their full names."""
        save_trained(model, folder / "head.safetensors")


METHOD: type[Method] = Head
