"""Which layers of a model play which role in attention and MLP; `register_family` adds another family."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from rowsft.errors import UserError
from rowsft.layers.matrix import LinearLayer, layer_shape
from rowsft.selection.channel import Axis
from rowsft.selection.groups import Member, UnitGroup


@dataclass(frozen=True)
class Coupling:
    """Layers of a block, by their names in it: the rows of the producers feed matching columns of the consumer.

    Attention producers are q, k and v, or one fused layer that holds the three as blocks of rows, in this order. An MLP
    producer holds `stacked` blocks of rows, one below the other, with a row of every hidden unit in each.
    """

    producers: tuple[str, ...]
    consumer: str
    stacked: int = 1


@dataclass(frozen=True)
class Family:
    """Models whose blocks are built alike. models: their `config.model_type`.

    Their config says num_attention_heads and, where there are fewer of them, num_key_value_heads.
    """

    name: str
    models: tuple[str, ...]
    attention: Coupling
    mlp: Coupling


FAMILIES: list[Family] = [
    Family(
        "Llama-like",
        (
            *("llama", "mistral", "ministral", "ministral3", "gemma", "gemma2", "gemma3_text", "vaultgemma", "qwen2"),
            *("qwen3", "olmo", "olmo2", "olmo3", "smollm3", "granite", "cohere", "cohere2", "stablelm", "helium"),
            *("seed_oss", "ernie4_5", "exaone4"),
        ),
        Coupling(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn.o_proj"),
        Coupling(("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"),
    ),
    Family(
        "Phi",
        ("phi",),
        Coupling(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn.dense"),
        Coupling(("mlp.fc1",), "mlp.fc2"),
    ),
    Family(
        "Phi-3 and 4",
        ("phi3",),
        Coupling(("self_attn.qkv_proj",), "self_attn.o_proj"),
        Coupling(("mlp.gate_up_proj",), "mlp.down_proj", stacked=2),
    ),
    Family(
        "GPT-2",
        ("gpt2",),
        Coupling(("attn.c_attn",), "attn.c_proj"),
        Coupling(("mlp.c_fc",), "mlp.c_proj"),
    ),
    Family(
        "BERT-like",
        (
            *("bert", "roberta", "roberta-prelayernorm", "xlm-roberta", "camembert", "electra", "ernie"),
            *("data2vec-text", "layoutlm", "megatron-bert"),
        ),
        Coupling(("attention.self.query", "attention.self.key", "attention.self.value"), "attention.output.dense"),
        Coupling(("intermediate.dense",), "output.dense"),
    ),
    Family(
        "DeBERTa-v2 and v3",
        ("deberta-v2",),
        Coupling(
            ("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"),
            "attention.output.dense",
        ),
        Coupling(("intermediate.dense",), "output.dense"),
    ),
    Family(
        "vision transformers",
        ("vit", "deit", "dinov2"),
        Coupling(("attention.q_proj", "attention.k_proj", "attention.v_proj"), "attention.o_proj"),
        Coupling(("mlp.fc1",), "mlp.fc2"),
    ),
]


def register_family(family: Family) -> Family:
    """Make the roles of a family's layers known, for channel=neurons and attention=grouped.

    Raises ValueError for a model type that another family has, and for one name where a tuple is meant.
    """
    for names in (family.models, family.attention.producers, family.mlp.producers):
        if isinstance(names, str):
            raise ValueError(f"family {family.name}: {names!r} stands alone; expected a tuple, ({names!r},)")
    for known in FAMILIES:
        if taken := set(family.models) & set(known.models):
            raise ValueError(f"model type {min(taken)} of family {family.name} belongs to {known.name} already")
    FAMILIES.append(family)
    return family


_OTHERS = "use channel rows, columns or both with attention=linear or skip"


def family_of(model: nn.Module, setting: str, instead: str = _OTHERS) -> Family:
    """Return the family of a model, by its config.

    Raises UserError for one that is not known, naming `setting` and what to do `instead`.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    for family in FAMILIES:
        if kind in family.models:
            return family
    known = "; ".join(f"{family.name} ({', '.join(family.models)})" for family in FAMILIES)
    raise UserError(
        f"{setting}: the roles of {type(model).__name__}'s layers (model type {kind}) are not known; known are "
        f"{known}; {instead}, or add the family with "
        "rowsft.selection.families.register_family"
    )


def is_attention(name: str) -> bool:
    """Whether a layer's full name lies in an attention module (self_attn, attention, attn, SelfAttention ...)."""
    return any("attn" in part or "attention" in part for part in name.lower().split("."))


def coupled_groups(model: nn.Module, layers: Mapping[str, LinearLayer], with_attention: bool) -> list[UnitGroup]:
    """Return the coupled units of every block, in the model's order: hidden units of the MLP, whole heads of attention.

    A hidden unit is a row of each producer and a column of the consumer. A head is one key-value head with all query
    heads it serves: their rows of q, k and v and their columns of o. A kind of which `layers` holds no member is left
    out; layers that play no role stay frozen. Raises UserError for an unknown family, a kind of which only some members
    are in `layers`, and a model or a choice of layers without any unit.
    """
    family = family_of(model, "channel=neurons")
    unit_groups = []
    hidden_units = partial(_hidden_units, stacked=family.mlp.stacked)
    for coupling, build in ((family.attention, partial(_heads, model)), (family.mlp, hidden_units)):
        if coupling is family.attention and not with_attention:
            continue
        for producers, consumer in _blocks(model, coupling):
            if _whole((*producers, consumer), layers, "a unit of channel=neurons"):
                unit_groups.append(build(layers, producers, consumer))
    if not unit_groups:
        raise UserError(
            f"channel=neurons: target_modules selects no whole unit of {type(model).__name__} ({family.name}); a "
            f"hidden unit is {_listed(family.mlp)}, a head {_listed(family.attention)}"
        )
    return in_order(unit_groups, layers)


def shared_groups(model: nn.Module, layers: Mapping[str, LinearLayer], axis: Axis) -> list[UnitGroup]:
    """Return the shared rows or columns of q, k and v of every block.

    Axis "rows": a unit is one offset in a key-value head, taken from k, from v, and from every query head that this
    head serves; a step takes one unit of every head. Axis "columns": a unit is one column of all three, which share
    their input. Raises UserError as `coupled_groups` does.
    """
    family = family_of(model, "attention=grouped")
    unit_groups = []
    for producers, _ in _blocks(model, family.attention):
        if not _whole(producers, layers, "attention=grouped"):
            continue
        name = producers[0].rpartition(".")[0]
        if axis == "columns":
            columns = torch.arange(layer_shape(layers[producers[0]])[1], device="cpu").unsqueeze(1)
            unit_groups.append(
                UnitGroup(name, "shared columns", tuple(Member(p, "columns", columns) for p in producers))
            )
            continue
        heads, groups, size = _geometry(model, layers, producers)
        queries = torch.arange(heads * groups * size, device="cpu").view(heads, groups, size)
        keys = torch.arange(heads * size, device="cpu").unsqueeze(1)
        rows = [queries.transpose(1, 2).reshape(-1, groups), keys, keys]
        unit_groups.append(UnitGroup(name, "shared rows a head", _placed(producers, rows), parts=heads))
    return unit_groups


def inner_layers(model: nn.Module, setting: str, instead: str) -> dict[str, set[str]]:
    """Return full names by role: the layers that make keys, those that make values, those that take hidden units.

    A fused layer makes keys, values and queries. Raises UserError as `family_of` does.
    """
    family = family_of(model, setting, instead)
    attention = [producers for producers, _ in _blocks(model, family.attention)]
    return {
        "keys": {producers[len(producers) // 2] for producers in attention},
        "values": {producers[-1] for producers in attention},
        "hidden units": {consumer for _, consumer in _blocks(model, family.mlp)},
    }


def in_order(unit_groups: Sequence[UnitGroup], layers: Mapping[str, LinearLayer]) -> list[UnitGroup]:
    """Return the groups in the order of their first layers in the model."""
    place = {name: index for index, name in enumerate(layers)}
    return sorted(unit_groups, key=lambda group: min(place[name] for name in group.layers))


def _blocks(model: nn.Module, coupling: Coupling) -> list[tuple[tuple[str, ...], str]]:
    """(full names of the producers, full name of the consumer) of every block that has them all."""
    names = {name: None for name, _ in model.named_modules()}
    first = f".{coupling.producers[0]}"
    blocks = [f".{name}".removesuffix(first).removeprefix(".") for name in names if f".{name}".endswith(first)]
    spelled = [[f"{block}.{m}".lstrip(".") for m in (*coupling.producers, coupling.consumer)] for block in blocks]
    return [(tuple(members[:-1]), members[-1]) for members in spelled if all(member in names for member in members)]


def _whole(members: tuple[str, ...], layers: Mapping[str, LinearLayer], needed_by: str) -> bool:
    """Whether all members are among `layers`; UserError where only some are."""
    missing = [name for name in members if name not in layers]
    if missing and len(missing) < len(members):
        selected = next(name for name in members if name in layers)
        raise UserError(
            f"target_modules selects {selected} without {', '.join(missing)}, which {needed_by} takes along; select "
            "them all or none of them"
        )
    return not missing


def _hidden_units(
    layers: Mapping[str, LinearLayer], producers: tuple[str, ...], consumer: str, stacked: int
) -> UnitGroup:
    units = layer_shape(layers[consumer])[1]
    ids = torch.arange(units, device="cpu").unsqueeze(1)
    for name in producers:
        if layer_shape(layers[name])[0] != units * stacked:
            raise UserError(
                f"layer {name} has {layer_shape(layers[name])[0]} rows for the {units} columns of {consumer}; "
                f"expected {'as many' if stacked == 1 else f'{stacked} times as many'}: use channel rows, columns or "
                "both for this model"
            )
    rows = [Member(name, "rows", block * units + ids) for name in producers for block in range(stacked)]
    members = (*rows, Member(consumer, "columns", ids))
    return UnitGroup(producers[0].rpartition(".")[0], "hidden units", members)


def _heads(model: nn.Module, layers: Mapping[str, LinearLayer], producers: tuple[str, ...], consumer: str) -> UnitGroup:
    heads, groups, size = _geometry(model, layers, producers)
    if layer_shape(layers[consumer])[1] != heads * groups * size:
        raise _odd_heads(model, consumer)
    of_query = torch.arange(heads * groups * size, device="cpu").view(heads, groups * size)
    of_key = torch.arange(heads * size, device="cpu").view(heads, size)
    members = (*_placed(producers, [of_query, of_key, of_key]), Member(consumer, "columns", of_query))
    return UnitGroup(producers[0].rpartition(".")[0], "heads", members)


def _placed(producers: tuple[str, ...], rows: list[torch.Tensor]) -> tuple[Member, ...]:
    """Members for the rows of q, k and v. A fused layer counts as the three that it fuses, one below the other."""
    if len(producers) == 1:
        starts = [0, rows[0].numel(), rows[0].numel() + rows[1].numel()]
        return tuple(Member(producers[0], "rows", start + ids) for start, ids in zip(starts, rows, strict=True))
    return tuple(Member(name, "rows", ids) for name, ids in zip(producers, rows, strict=True))


def _geometry(model: nn.Module, layers: Mapping[str, LinearLayer], producers: tuple[str, ...]) -> tuple[int, int, int]:
    """(key-value heads, query heads that each serves, rows of a head) of q, k and v."""
    config: Any = model.config
    query = config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or query
    rows = [layer_shape(layers[name])[0] for name in producers]
    if len(rows) == 1:
        size = rows[0] // (query + 2 * heads)
        rows = [query * size, heads * size, rows[0] - (query + heads) * size]
    size = rows[0] // query
    if query % heads or rows != [query * size, heads * size, heads * size]:
        raise _odd_heads(model, producers[0])
    return heads, query // heads, size


def _odd_heads(model: nn.Module, name: str) -> UserError:
    return UserError(
        f"layer {name} of {type(model).__name__} does not divide into the heads that its config declares; {_OTHERS}"
    )


def _listed(coupling: Coupling) -> str:
    return ", ".join((*coupling.producers, coupling.consumer))
