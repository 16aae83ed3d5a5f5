"""A base model packed in 4 or 8 bits (`model.quantize`): which layers, and whether it can be done at all."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from torch import nn

from rowsft.errors import UserError
from rowsft.layers.matrix import is_bypassed
from rowsft.layers.packing import LIBRARIES, mark, packed, replace
from rowsft.layers.quantised import is_packed, keep_layout
from rowsft.selection.targets import HEAD_NAMES, head_names


def check_quantize(model_cfg: Mapping[str, Any]) -> str | None:
    """Return what the base is to be packed in, None for not at all.

    Raises UserError where the library for it is not installed.
    """
    kind = model_cfg.get("quantize")
    if kind is not None and find_spec(LIBRARIES[kind]) is None:
        raise UserError(
            f"model.quantize={kind} needs {LIBRARIES[kind]}, which is not installed; pip install 'rowsft[quant]', or "
            "set model.quantize=null"
        )
    return kind


def quantise(model: nn.Module, kind: str, heads: Sequence[str], source: str) -> list[str]:
    """Pack the linear layers of a model, in their order and in place; returns their full names.

    Embeddings, norms, the output layer, the modules named in `heads`, other task heads, and layers whose weight the
    model shares or reads without calling them stay as they are. One layer's weight at a time exists twice. Works on the
    meta device. Raises UserError for a model that has no such layer and for one whose weights are packed already.
    """
    if any(map(is_packed, model.parameters())):
        raise UserError(
            f"model.quantize={kind}: the weights of {source} are quantised already; set model.quantize=null to take "
            "them as they are, or give the checkpoint that they were made from"
        )
    names = layers_to_pack(model, heads)
    if not names:
        raise UserError(
            f"model.quantize={kind}: {type(model).__name__} has no nn.Linear layer outside of its head (GPT-2's layers "
            "are of another class, Conv1D, which bitsandbytes and torchao do not quantise); set model.quantize=null"
        )
    for name in names:
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        replace(model, name, packed(layer, kind))
        del layer
    mark(model, kind)
    keep_layout(model)
    return names


def layers_to_pack(model: nn.Module, heads: Sequence[str]) -> list[str]:
    """Return the names of the layers that `quantise` would pack."""
    output_embeddings: Any = getattr(model, "get_output_embeddings", None)
    output = output_embeddings() if output_embeddings else None
    inside = tuple(f"{name}." for name in head_names(model, [head for head in heads if _is_there(model, head)]))
    holders: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    return [
        name
        for name, layer in model.named_modules()
        if type(layer) is nn.Linear
        and layer is not output
        and HEAD_NAMES.isdisjoint(name.split("."))
        and not f"{name}.".startswith(inside)
        and holders[id(layer.weight)] == 1
        and not is_bypassed(model, name)
    ]


def _is_there(model: nn.Module, head: str) -> bool:
    return any(name == head or name.endswith(f".{head}") for name, _ in model.named_modules())
