"""No training at all: what the model scores as it is loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import nn

from rowsft.method_info import MethodInfo
from rowsft.methods.base import Method, ResolvedMethod
from rowsft.methods.plain_method import PlainMethod, trainable_counts
from rowsft.selection.budget import Budget
from rowsft.selection.targets import Targets


@dataclass
class Untrained(PlainMethod):
    """Train nothing; no budget applies."""

    info: ClassVar[MethodInfo] = MethodInfo("none", "no training", 0, "#7f7f7f", "x", budgeted=False)
    trains: ClassVar[bool] = False

    name: str = info.name

    def solve(self, budget: Budget, model: nn.Module, targets: Targets) -> ResolvedMethod:
        """Nothing."""
        return ResolvedMethod({}, achieved=0)

    def attach(self, model: nn.Module, resolved: ResolvedMethod) -> nn.Module:
        """Freeze everything."""
        return model.requires_grad_(False)

    def trainable(self, model: nn.Module) -> dict[str, int]:
        """All zero."""
        return trainable_counts(model, lambda name: False)

    def save(self, model: nn.Module, folder: Path) -> None:
        """Nothing was trained, so nothing is written."""


METHOD: type[Method] = Untrained
