"""What methods share that train parameters of the model itself, or none."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from safetensors.torch import load_file, save_file
from torch import nn

from rowsft.errors import UserError
from rowsft.method_info import MethodInfo
from rowsft.methods.base import Method, ResolvedMethod


class PlainMethod(Method):
    """A method that trains parameters of the model itself, or none: there is no adapter to wrap or merge.

    Subclasses are dataclasses with a `name`.
    """

    info: ClassVar[MethodInfo]
    trains: ClassVar[bool] = True
    saves_checkpoint: ClassVar[bool] = False
    #: What `rowsft plan --compare` plans of it: name of the variant -> overrides.
    compared: ClassVar[dict[str, list[str]]] = {}

    def load(self, model: nn.Module, resolved: ResolvedMethod, folder: Path) -> nn.Module:
        """See `ReloadedMethod.load`."""
        model = self.attach(model, resolved)
        for path in folder.glob("*.safetensors"):
            # What a checkpoint leaves out is tied to what it holds.
            unknown = model.load_state_dict(load_file(path), strict=False).unexpected_keys
            if unknown:
                raise UserError(f"{path} holds {unknown[0]}, which this model has not: it was saved from another one")
        return model

    def merge(self, model: nn.Module) -> nn.Module:
        """See `Method.merge`: the model itself."""
        return model


def head_parameters(model: nn.Module, head_modules: Sequence[str]) -> int:
    """Return the parameters of the head modules of a plain model; each counts once."""
    return sum(p.numel() for p in {p for name in head_modules for p in model.get_submodule(name).parameters()})


def trainable_counts(model: nn.Module, is_head: Callable[[str], bool]) -> dict[str, int]:
    """Return the trainable parameters split by `is_head(parameter name)`: adapter, head, total."""
    counts = {"adapter": 0, "head": 0}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            counts["head" if is_head(name) else "adapter"] += parameter.numel()
    return {**counts, "total": counts["adapter"] + counts["head"]}


def trained_names(model: nn.Module) -> set[str]:
    """Return the names of the trainable parameters."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def save_trained(model: nn.Module, path: Path, names: set[str] | None = None) -> None:
    """Write the trainable parameters of a model, or those of `names`, as safetensors under their full names.

    The folder is created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    names = trained_names(model) if names is None else names
    trained = {name: p.detach().contiguous() for name, p in model.named_parameters() if name in names}
    save_file(trained, path, metadata={"format": "pt"})
