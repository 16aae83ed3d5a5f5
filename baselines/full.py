"""Full fine-tuning: every parameter of the model, embeddings and task head included."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from torch import nn
from transformers import PreTrainedModel

from rowsft.errors import UserError
from rowsft.layers.quantised import is_packed
from rowsft.method_info import MethodInfo
from rowsft.methods.base import Method, ResolvedMethod
from rowsft.methods.plain_method import PlainMethod, head_parameters, trainable_counts
from rowsft.selection.budget import Budget
from rowsft.selection.targets import Targets, head_names


@dataclass
class Full(PlainMethod):
    """Train everything; no budget applies."""

    info: ClassVar[MethodInfo] = MethodInfo("full", "full fine-tuning", 60, "#009E73", "^", budgeted=False)
    saves_checkpoint: ClassVar[bool] = True
    compared: ClassVar[dict[str, list[str]]] = {"": []}

    name: str = info.name
    head_modules: list[str] = field(default_factory=list, init=False)

    def solve(self, budget: Budget, model: nn.Module, targets: Targets) -> ResolvedMethod:
        """All parameters; the count without the head is reported. Raises UserError for quantised ones."""
        for name, parameter in model.named_parameters():
            if is_packed(parameter):
                raise UserError(
                    f"method={self.name}: {name} holds {parameter.dtype} values (quantised), which cannot be trained; "
                    "give a base model that is not quantised (model.quantize=null), or use another method"
                )
        head = head_names(model, targets.head_modules)
        everything = sum(parameter.numel() for parameter in model.parameters())
        return ResolvedMethod({"head_modules": head}, achieved=everything - head_parameters(model, head))

    def attach(self, model: nn.Module, resolved: ResolvedMethod) -> nn.Module:
        """Make every parameter trainable."""
        self.head_modules = resolved.values["head_modules"]
        return model.requires_grad_(True)

    def trainable(self, model: nn.Module) -> dict[str, int]:
        """Counts of trainable parameters; "adapter" is the model without its head."""
        inside = tuple(f"{head}." for head in self.head_modules)
        return trainable_counts(model, lambda name: name.startswith(inside))

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """The whole checkpoint, as transformers saves it."""
        model.save_pretrained(folder)


METHOD: type[Method] = Full
