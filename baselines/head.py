"""Linear probing: only the task head is trained, the pretrained model stays as it is."""

from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from rowsft.errors import UserError
from rowsft.methods.base import PlainMethod, ResolvedMethod, trainable_counts
from rowsft.selection.budget import Budget
from rowsft.selection.targets import Targets, head_names


@dataclass
class Head(PlainMethod):
    """Train the task head alone; no budget applies."""

    name: str = "head"

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
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        trained = {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}
        save_file(trained, folder / "head.safetensors", metadata={"format": "pt"})


METHOD = Head
