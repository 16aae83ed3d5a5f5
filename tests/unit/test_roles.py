"""Coupled units and shared rows of q, k and v, held against what a model computes when one unit is silenced."""

from collections import Counter

import pytest
import torch
from tiny import causal_batch, classification_batch, tiny_bert, tiny_gpt2, tiny_llama
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    OPTConfig,
    OPTForCausalLM,
)
from transformers.pytorch_utils import Conv1D

from rowsft.errors import UserError
from rowsft.layers.matrix import layer_shape
from rowsft.selection.choose import unit_groups_for
from rowsft.selection.families import FAMILIES, is_attention
from rowsft.selection.targets import Targets, eligible_layers

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 96}
VISION_TYPES = {"vit", "deit", "dinov2"}
DECODER_TYPES = {*FAMILIES[0].models, "phi", "phi3"}
DECODERS = {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
FUSED = {"n_embd": 32, "n_inner": 64, "n_layer": 2, "n_head": 4, "vocab_size": 96}


def build(kind):
    """A tiny model of a model type, in float64."""
    if kind == "gpt2":
        return tiny_gpt2(torch.float64), causal_batch()
    if kind in DECODER_TYPES:
        config = AutoConfig.for_model(kind, **DECODERS)
        model, batch = AutoModelForCausalLM.from_config(config), causal_batch()
    elif kind in VISION_TYPES:
        sizes = {**SIZES, "mlp_ratio": 2, "image_size": 16, "patch_size": 4}
        config = AutoConfig.for_model(kind, architectures=["DeiTForImageClassification"], **sizes)
        model = AutoModelForImageClassification.from_config(config)
        batch = {"pixel_values": torch.randn(2, 3, 16, 16, dtype=torch.float64)}
    else:
        more = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        if kind == "deberta-v2":
            more |= {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "share_att_key": True}
        model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind, **SIZES, **more))
        batch = classification_batch()
    batch = {key: value.clamp(max=90) if key == "input_ids" else value for key, value in batch.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.double().eval(), {key: value for key, value in batch.items() if key != "labels"}


def neuron_groups(model, **targets):
    return unit_groups_for(model, eligible_layers(model, Targets(**targets)), "neurons", "linear")


@torch.no_grad()
def outputs_without(model, batch, cuts):
    """Logits with some of the rows (with their biases) or columns of some layers set to zero."""
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, axis, ids in cuts:
        layer = model.get_submodule(name)
        weight = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
        if axis == "columns":
            weight[:, ids] = 0
        else:
            weight[ids] = 0
            if layer.bias is not None:
                layer.bias[ids] = 0
    logits = model(**batch).logits
    model.load_state_dict(kept)
    return logits


@pytest.mark.parametrize("kind", [kind for family in FAMILIES for kind in family.models])
def test_a_unit_is_whole_and_alone(kind):
    """What the consumer reads of a unit is what its last producer writes: silencing either gives the same output.

    That holds for up (or a plain MLP's first layer, whose activation of 0 is 0) and for v, and for no other unit: it
    proves which columns, and which query heads, belong to which rows.
    """
    torch.manual_seed(0)
    model, batch = build(kind)
    unit_groups = neuron_groups(model)
    assert [group.noun for group in unit_groups] == ["heads", "hidden units"] * 2
    heads = 4 if kind not in DECODER_TYPES else 2
    assert [group.size for group in unit_groups] == [heads, 64] * 2
    plain = outputs_without(model, batch, [])
    for group in unit_groups[2:]:
        for unit in (0, group.size - 1):
            *_, written, read = group.members
            cut = outputs_without(model, batch, [(read.layer, read.axis, read.ids[unit])])
            same = outputs_without(model, batch, [(written.layer, written.axis, written.ids[unit])])
            torch.testing.assert_close(cut, same, rtol=1e-9, atol=1e-11)
            assert not torch.allclose(cut, plain, rtol=1e-9, atol=1e-9)
    for group in unit_groups:
        taken = Counter()
        for layer, axis, of_step in group.widths():
            taken[layer, axis] += of_step * group.size
        for (layer, axis), count in taken.items():
            assert count == layer_shape(model.get_submodule(layer))[axis == "columns"]


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2, tiny_bert])
def test_the_query_rows_of_a_head_are_those_its_keys_meet(build):
    """With a head's key rows silenced (scores 0 everywhere), its query rows no longer matter, and only they do not."""
    model = build(torch.float64)
    batch = {
        k: v for k, v in (classification_batch() if build is tiny_bert else causal_batch()).items() if k != "labels"
    }
    for group in (group for group in neuron_groups(model) if group.noun == "heads"):
        query, key, *_ = group.members
        without_keys = [(key.layer, "rows", key.ids[1])]
        silent = outputs_without(model, batch, without_keys)
        own = outputs_without(model, batch, [*without_keys, (query.layer, "rows", query.ids[1])])
        other = outputs_without(model, batch, [*without_keys, (query.layer, "rows", query.ids[0])])
        torch.testing.assert_close(own, silent, rtol=1e-9, atol=1e-11)
        assert not torch.allclose(other, silent, rtol=1e-9, atol=1e-9)


def test_shared_rows_are_one_offset_in_every_head_of_the_group():
    model = tiny_llama()
    layers = eligible_layers(model, Targets(["q_proj", "k_proj", "v_proj"], layers_to_transform=[0]))
    [group] = unit_groups_for(model, layers, "rows", "grouped")
    query, key, value = group.members
    for head in range(2):
        for offset in range(8):
            unit = 8 * head + offset
            assert key.ids[unit].tolist() == value.ids[unit].tolist() == [8 * head + offset]
            assert query.ids[unit].tolist() == [8 * (2 * head) + offset, 8 * (2 * head + 1) + offset]
    assert (group.parts, group.size) == (2, 8)


def test_shared_rows_of_a_fused_projection_lie_in_three_blocks():
    model = tiny_gpt2()
    layers = eligible_layers(model, Targets(["c_attn"], layers_to_transform=[0]))
    [group] = unit_groups_for(model, layers, "rows", "grouped")
    assert [member.layer for member in group.members] == ["transformer.h.0.attn.c_attn"] * 3
    assert [member.ids[9].tolist() for member in group.members] == [[9], [32 + 9], [64 + 9]]


@pytest.mark.parametrize(("channel", "attention"), [("neurons", "linear"), ("rows", "grouped"), ("columns", "grouped")])
def test_an_unknown_family_is_refused_by_name_with_the_known_ones(channel, attention):
    sizes = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 96}
    model = OPTForCausalLM(OPTConfig(**sizes, word_embed_proj_dim=32, max_position_embeddings=32))
    layers = eligible_layers(model, Targets())
    message = (
        r"OPTForCausalLM's layers \(model type opt\) are not known; known are Llama-like \(llama, .*BERT-like.*use"
    )
    with pytest.raises(UserError, match=message) as caught:
        unit_groups_for(model, layers, channel, attention)
    assert "\n" not in str(caught.value)
    assert len(unit_groups_for(model, layers, "rows", "linear")) == 6
    assert [group.name.rpartition(".")[2] for group in unit_groups_for(model, layers, "rows", "skip")] == ["fc1", "fc2"]


@pytest.mark.parametrize(
    ("channel", "attention", "targets", "message"),
    [
        (
            "neurons",
            "linear",
            ["q_proj"],
            r"selects model.layers.0.self_attn.q_proj without .*k_proj, .*v_proj, .*o_proj",
        ),
        ("neurons", "linear", ["gate_proj", "up_proj"], "without model.layers.0.mlp.down_proj"),
        ("neurons", "skip", ["q_proj", "k_proj", "v_proj", "o_proj"], "selects no whole unit of LlamaForCausalLM"),
        ("rows", "grouped", ["q_proj", "v_proj"], "self_attn.q_proj without model.layers.0.self_attn.k_proj"),
        ("both", "grouped", ["q_proj", "k_proj", "v_proj"], "attention=grouped with channel=both: expected channel"),
        ("rows", "skip", ["q_proj", "v_proj"], "attention=skip leaves no layer to tune"),
        ("all", "linear", ["q_proj"], "channel=all: unknown; use one of rows, columns, both, neurons"),
        ("rows", "split", ["q_proj"], "attention=split: unknown; use one of linear, grouped, skip"),
    ],
)
def test_what_cannot_be_coupled_is_refused(channel, attention, targets, message):
    model = tiny_llama()
    with pytest.raises(UserError, match=message):
        unit_groups_for(model, eligible_layers(model, Targets(targets)), channel, attention)


def test_kinds_without_a_target_are_left_out():
    model = tiny_llama()
    mlp = neuron_groups(model, target_modules=["gate_proj", "up_proj", "down_proj"])
    assert [group.name for group in mlp] == ["model.layers.0.mlp", "model.layers.1.mlp"]
    attention = neuron_groups(model, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    assert [group.name for group in attention] == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
    skipped = unit_groups_for(model, eligible_layers(model, Targets()), "neurons", "skip")
    assert [group.name for group in skipped] == [group.name for group in mlp]


def test_heads_that_the_config_does_not_explain_are_refused():
    model = tiny_llama()
    model.config.num_attention_heads = 3
    with pytest.raises(UserError, match="q_proj of LlamaForCausalLM does not divide into the heads"):
        neuron_groups(model)


def test_attention_is_known_by_the_names_of_its_modules():
    for name in ("model.layers.0.self_attn.q_proj", "h.1.attn.c_proj", "encoder.block.0.layer.0.SelfAttention.q"):
        assert is_attention(name)
    for name in ("model.layers.0.mlp.up_proj", "encoder.layer.0.output.dense", "decoder.layers.0.fc1"):
        assert not is_attention(name)
