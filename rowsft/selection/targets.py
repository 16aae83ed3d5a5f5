"""Which layers may be tuned, and what a choice of rows and columns of a layer is."""

import re
from collections.abc import Sequence, Set
from dataclasses import dataclass
from types import SimpleNamespace

from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from torch import nn
from transformers.pytorch_utils import Conv1D

from rowsft.errors import UserError
from rowsft.layers.matrix import is_bypassed
from rowsft.selection.ids import Chosen

__all__ = ["Chosen", "Targets", "eligible_layers", "head_names", "layer_shape"]

# Conventional names of output layers and task heads; PEFT's "all-linear" leaves out only some of them.
HEAD_NAMES = frozenset(
    ("lm_head", "embed_out", "classifier", "pre_classifier", "score", "pooler", "cls", "predictions", "qa_outputs")
)


@dataclass(frozen=True)
class Targets:
    """Which linear layers a method adapts, in PEFT's own terms, and which modules are the task head.

    target_modules: "all-linear", one regular expression over full names, or a list of name endings.
    exclude_modules: names or one regular expression left out, as in PEFT.
    layers_to_transform: indices of the blocks to adapt (None: all). Unlike PEFT this also works with "all-linear".
    layers_pattern: names of the module lists that these indices count in, as in PEFT.
    head_modules: names of the modules that every method trains in full; they are never adapted nor counted.
    """

    target_modules: str | Sequence[str] = "all-linear"
    exclude_modules: str | Sequence[str] | None = None
    layers_to_transform: int | Sequence[int] | None = None
    head_modules: Sequence[str] = ()
    layers_pattern: str | Sequence[str] | None = None

    def __post_init__(self):
        """Raises UserError for target_modules or exclude_modules that are neither names nor a regular expression."""
        for setting, value in (("target_modules", self.target_modules), ("exclude_modules", self.exclude_modules)):
            if not (isinstance(value, str | Sequence | Set) or (value is None and setting == "exclude_modules")):
                raise UserError(
                    f"{setting}={_shown(value)}: expected names of layers or one regular expression; "
                    'set it, e.g. to "all-linear" or ["q_proj", "v_proj"]'
                    if setting == "target_modules"
                    else f"{setting}={_shown(value)}: expected names of layers, one regular expression, or null"
                )
            if isinstance(value, str):
                _check_expression(setting, value)


def eligible_layers(model: nn.Module, targets: Targets) -> dict[str, nn.Module]:
    """The linear layers (nn.Linear, Conv1D) that `targets` names, in the model's order: full name -> layer.

    Output embeddings and task heads (`HEAD_NAMES`, `targets.head_modules`) are left out, unless target_modules names a
    conventional head explicitly; so are layers whose weight the model reads without calling them. Works on the meta
    device. Raises UserError when an entry of target_modules matches no linear layer or nothing is left.
    """
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise UserError("the model carries a PEFT adapter already; give the plain base model (model.unload())")
    linears = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | Conv1D) and not is_bypassed(model, name)
    }
    _check_entries(linears, targets)
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    eligible = {
        name: layer
        for name, layer in linears.items()
        if _matches(name, targets) and not _is_head(name, targets) and (layer is not output or _names(targets, name))
    }
    if not eligible:
        raise UserError(
            f"target_modules={_shown(targets.target_modules)} (exclude_modules={_shown(targets.exclude_modules)}, "
            f"layers_to_transform={_shown(targets.layers_to_transform)}) leaves no layer to tune; "
            f"linear layers of this model: {_examples(linears)}"
        )
    return eligible


def layer_shape(layer: nn.Module) -> tuple[int, int]:
    """(d_out, d_in) of a linear layer, whichever way round it stores its weight."""
    return (layer.nf, layer.nx) if isinstance(layer, Conv1D) else (layer.out_features, layer.in_features)


def head_names(model: nn.Module, head_modules: Sequence[str]) -> list[str]:
    """Full names of the modules that `head_modules` names, in full or by their ending. UserError if none does."""
    modules = [name for name, _ in model.named_modules() if name]
    found: list[str] = []
    for head in head_modules:
        matched = [name for name in modules if name == head or name.endswith(f".{head}")]
        if not matched:
            tops = ", ".join(name for name, _ in model.named_children())
            raise UserError(f"head_modules={head}: no such module in {type(model).__name__}; its parts are {tops}")
        found += [name for name in matched if name not in found]
    return found


def _matches(name: str, targets: Targets) -> bool:
    wanted = targets.target_modules
    if isinstance(wanted, str):
        if wanted.lower() != "all-linear" and not re.fullmatch(wanted, name):
            return False
        # PEFT applies layers_to_transform to name endings only: give it the ending of this very layer.
        wanted = [name.rpartition(".")[2]]
    rules = SimpleNamespace(
        target_modules=list(wanted),
        exclude_modules=targets.exclude_modules,
        modules_to_save=[re.escape(head) for head in targets.head_modules or ()],
        layers_to_transform=_plain(targets.layers_to_transform),
        layers_pattern=targets.layers_pattern,
    )
    return bool(check_target_module_exists(rules, name))


def _is_head(name: str, targets: Targets) -> bool:
    return not _names(targets, name) and not HEAD_NAMES.isdisjoint(name.split("."))


def _names(targets: Targets, name: str) -> bool:
    """Whether target_modules spells out a conventional head that `name` lies in: then the head is meant."""
    wanted = [targets.target_modules] if isinstance(targets.target_modules, str) else targets.target_modules
    heads = HEAD_NAMES.intersection(name.split("."))
    return any(head in re.split(r"\W+", entry) for head in heads for entry in wanted)


def _check_entries(linears: dict[str, nn.Module], targets: Targets) -> None:
    if isinstance(targets.target_modules, str):
        return
    for entry in targets.target_modules:
        if not any(name == entry or name.endswith(f".{entry}") for name in linears):
            raise UserError(
                f"target_modules: {entry} matches no linear layer; linear layers of this model: {_examples(linears)}"
            )


def _check_expression(setting: str, expression: str) -> None:
    try:
        re.compile(expression)
    except re.error as error:
        raise UserError(
            f"{setting}={expression} is no regular expression ({error}); mend it, or give a list of layer names"
        ) from None


def _examples(linears: dict[str, nn.Module]) -> str:
    by_ending = {name.rpartition(".")[2]: name for name in reversed(linears)}
    return ", ".join(sorted(by_ending.values())[:12]) or "none"


def _plain(value: int | Sequence[int] | None) -> int | list[int] | None:
    return value if value is None or isinstance(value, int) else list(value)


def _shown(value: object) -> str:
    return str(value) if value is None or isinstance(value, str | int) else str(list(value))
