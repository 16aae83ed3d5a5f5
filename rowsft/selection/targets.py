"""Which layers may be tuned, and which modules are the task head."""

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from torch import nn

from rowsft.errors import UserError
from rowsft.layers.matrix import LinearLayer, is_bypassed

# Conventional names of output layers and task heads; PEFT's "all-linear" leaves out only some of them.
HEAD_NAMES = frozenset(
    ("lm_head", "embed_out", "classifier", "pre_classifier", "score", "pooler", "cls", "predictions", "qa_outputs")
)


Names = Sequence[str] | Set[str]


@dataclass(frozen=True)
class Targets:
    """Which linear layers a method adapts, in PEFT's own terms, and which modules are the task head.

    target_modules: "all-linear", one regular expression over full names, or a list of name endings.
    exclude_modules: names or one regular expression left out, as in PEFT.
    layers_to_transform: indices of the blocks to adapt (None: all). Unlike PEFT this also works with "all-linear".
    layers_pattern: names of the module lists that these indices count in, as in PEFT.
    head_modules: names of the modules that every method trains in full; they are never adapted nor counted.
    """

    target_modules: str | Names = "all-linear"
    exclude_modules: str | Names | None = None
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


def eligible_layers(model: nn.Module, targets: Targets) -> dict[str, LinearLayer]:
    """Return the linear layers (nn.Linear, Conv1D) that `targets` names, in the model's order: full name -> layer.

    Output embeddings and task heads (`HEAD_NAMES`, `targets.head_modules`) are left out, unless target_modules names a
    conventional head explicitly; so are layers whose weight the model reads without calling them. Works on the meta
    device. Raises UserError when an entry of target_modules matches no linear layer or nothing is left.
    """
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise UserError("the model carries a PEFT adapter already; give the plain base model (model.unload())")
    linears = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, LinearLayer) and not is_bypassed(model, name)
    }
    _check_entries(linears, targets)
    output_embeddings = getattr(model, "get_output_embeddings", None)
    output = output_embeddings() if output_embeddings else None
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


def head_names(model: nn.Module, head_modules: Sequence[str]) -> list[str]:
    """Return the full names of the modules that `head_modules` names, in full or by their ending.

    Raises UserError for one that names none.
    """
    modules = [name for name, _ in model.named_modules() if name]
    full_names: list[str] = []
    for head in head_modules:
        matched = [name for name in modules if name == head or name.endswith(f".{head}")]
        if not matched:
            tops = ", ".join(name for name, _ in model.named_children())
            raise UserError(f"head_modules={head}: no such module in {type(model).__name__}; its parts are {tops}")
        full_names += [name for name in matched if name not in full_names]
    return full_names


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


def _check_entries(linears: Mapping[str, LinearLayer], targets: Targets) -> None:
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
            f"{setting}={expression} must be a regular expression ({error}); correct it, or give a list of layer names"
        ) from None


def _examples(linears: Mapping[str, LinearLayer]) -> str:
    by_ending = {name.rpartition(".")[2]: name for name in reversed([*linears])}
    return ", ".join(sorted(by_ending.values())[:12]) or "none"


def _plain(value: int | Sequence[int] | None) -> int | list[int] | None:
    return value if value is None or isinstance(value, int) else list(value)


def _shown(value: Any) -> str:
    return str(value) if value is None or isinstance(value, str | int) else str(list(value))
