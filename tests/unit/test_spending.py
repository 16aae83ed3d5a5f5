"""Budgets of every channel against closed forms and counts of single entries, real shapes on the meta device."""

import json

import pytest
import torch
from tiny import tiny_bert, tiny_gpt2, tiny_llama
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from rowsft.baselines.dora import Dora
from rowsft.baselines.lora import Lora
from rowsft.errors import UserError
from rowsft.layers.matrix import layer_shape
from rowsft.methods.row_sft import RowSFT
from rowsft.selection.budget import Budget
from rowsft.selection.targets import Targets, eligible_layers

CHANNELS = ["rows", "columns", "both", "neurons"]
MODES = [(channel, "linear") for channel in CHANNELS] + [
    ("rows", "grouped"),
    ("columns", "grouped"),
    ("neurons", "skip"),
]


def on_meta(model_class, config):
    with torch.device("meta"):
        return model_class(config)


@pytest.fixture(scope="module")
def models():
    wide = {"hidden_size": 4096, "num_hidden_layers": 32}
    small = {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536, "num_attention_heads": 12}
    llama3 = {"intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 128256}
    return {
        "llama2_7b": on_meta(LlamaForCausalLM, LlamaConfig(**wide, intermediate_size=11008)),
        "llama3_8b": on_meta(LlamaForCausalLM, LlamaConfig(**wide, **llama3)),
        "minilm": on_meta(BertForSequenceClassification, BertConfig(num_labels=2, **small)),
    }


@pytest.mark.parametrize(
    ("model", "mlp", "kv"),
    [("llama2_7b", 11008, 4096), ("llama3_8b", 14336, 1024)],
)
def test_closed_forms_of_a_llama(models, model, mlp, kv):
    """h the width, f the MLP's, kv the keys': 32 blocks of q, k, v, o, gate, up (from h) and down (from f)."""
    h, k = 4096, 16

    def asked(channel, k=k, **settings):
        resolved = RowSFT(channel=channel, **settings).solve(Budget(rows=k), models[model], Targets())
        assert resolved.asked == resolved.achieved
        return resolved.achieved

    row = 32 * (6 * h + mlp)
    column = 32 * (h + 2 * kv + h + 2 * mlp + h)
    assert asked("rows", 1) == row == {"llama2_7b": 1_138_688, "llama3_8b": 1_245_184}[model]
    assert asked("columns") == k * column
    assert asked("both") == (k // 2) * (row + column) - 32 * 7 * (k // 2) ** 2
    assert asked("both", 15) == 8 * row + 7 * column - 32 * 7 * 8 * 7
    head = (128 * (h // kv) + 2 * 128) * h + h * 128 * (h // kv)
    assert asked("neurons", 2) == 2 * 32 * (3 * h + head)
    assert asked("neurons", attention="skip") == k * 32 * 3 * h
    assert asked("rows", attention="skip") == k * 32 * (2 * h + mlp)


def test_closed_forms_of_minilm_with_and_without_biases(models):
    h, f, k = 384, 1536, 4
    for bias in (True, False):
        for channel, expected in {
            "rows": k * (5 * (h + bias) + f + bias),
            "columns": k * (4 * h + f + h),
            "both": 2 * (5 * (h + bias) + f + bias) + 2 * (4 * h + f + h) - 6 * 4,
            "neurons": k * ((h + bias) + h) + k * (3 * 32 * (h + bias) + 32 * h),
        }.items():
            resolved = RowSFT(channel=channel, train_bias=bias).solve(Budget(rows=k), models["minilm"], Targets())
            assert resolved.asked == resolved.achieved == 6 * expected


def entries(method, model, resolved):
    """Trainable parameters of the resolved' sizes, counted on masks of each weight (the ids do not matter)."""
    total, values = 0, resolved.values
    for name in {*values["rows_pattern"], *values["columns_pattern"]}:
        rows, columns = values["rows_pattern"].get(name, 0), values["columns_pattern"].get(name, 0)
        layer = model.get_submodule(name)
        d_out, d_in = layer_shape(layer)
        assert rows <= d_out
        assert columns <= d_in
        total += d_out * d_in - (d_out - rows) * (d_in - columns)
        total += rows if method.train_bias and layer.bias is not None else 0
    return total


@pytest.mark.parametrize("r", [4, 8, 64])
@pytest.mark.parametrize(("channel", "attention"), MODES)
@pytest.mark.parametrize("model", ["llama2_7b", "llama3_8b", "minilm"])
def test_the_parameters_of_lora_are_met_within_one_percent(models, model, channel, attention, r):
    model, method = models[model], RowSFT(channel=channel, attention=attention)
    resolved = method.solve(Budget(like={"method": "lora", "r": r}), model, Targets())
    assert resolved.asked == Lora(r=r).solve(Budget(), model, Targets()).achieved
    assert 0.99 * resolved.asked <= resolved.achieved <= resolved.asked
    assert resolved.achieved == entries(method, model, resolved)
    assert json.loads(json.dumps(resolved.values)) == resolved.values


@pytest.mark.parametrize("share", [0.006, 0.05, 0.4, 0.97])
@pytest.mark.parametrize(("channel", "attention"), MODES)
@pytest.mark.parametrize("build", [tiny_llama, tiny_bert, tiny_gpt2])
def test_what_is_left_over_is_less_than_the_dearest_single_step(build, channel, attention, share):
    model, method = build(), RowSFT(channel=channel, attention=attention)
    everything = sum(layer.weight.numel() for layer in eligible_layers(model, Targets()).values())
    asked = int(share * everything)
    # One hidden unit, one row or one column of the largest layer.
    finest = {"tiny_llama": 96, "tiny_bert": 65, "tiny_gpt2": 96}[build.__name__] if channel != "neurons" else 97
    try:
        resolved = method.solve(Budget(params=asked), model, Targets())
    except UserError as error:
        assert (channel, attention, share) == ("neurons", "skip", 0.97)
        assert "but all hidden units of the 2 layers have" in str(error)
        return
    assert 0 <= asked - resolved.achieved < finest
    assert resolved.achieved == entries(method, model, resolved)


@pytest.mark.parametrize("method", [RowSFT(channel=channel) for channel in CHANNELS] + [Lora(), Dora()])
@pytest.mark.parametrize("source", [{"rows": 6}, {"ratio": 0.02}, {"like": {"method": "row_sft", "rows": 6}}])
def test_every_method_meets_the_budget_of_rows_in_its_own_terms(models, method, source):
    model = models["minilm"]
    resolved = method.solve(Budget(**source), model, Targets())
    assert resolved.achieved > 0
    if isinstance(method, Lora) or "like" in source:
        assert resolved.asked == RowSFT().solve(Budget(**source), model, Targets()).achieved
        assert 0.99 * resolved.asked <= resolved.achieved <= resolved.asked


def test_small_budgets_of_units_go_to_the_mlp_and_larger_ones_share_whole_heads(models):
    """A head of Llama-2-7B costs 4 * 128 * 4096 = 2,097,152 of 134 M a block: its first comes at 1/32 of everything."""
    model = models["llama2_7b"]
    everything = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    for share, heads in ((0.006, 0), (0.0312, 0), (0.0313, 1), (0.5, 16), (0.999, 31), (1.0, 32)):
        resolved = RowSFT(channel="neurons").solve(Budget(params=int(share * everything)), model, Targets())
        rows = resolved.values["rows_pattern"]
        queries = {rows.get(f"model.layers.{block}.self_attn.q_proj", 0) for block in range(32)}
        units = [rows[f"model.layers.{block}.mlp.up_proj"] for block in range(32)]
        assert max(units) - min(units) <= 1
        assert queries <= ({128 * heads} if share < 0.9 else {128 * heads, 128 * min(heads + 1, 32)})
        assert resolved.achieved == pytest.approx(share * everything, rel=0.01)
        assert resolved.values["columns_pattern"]["model.layers.0.mlp.down_proj"] == units[0]


def test_grouped_rows_take_the_nearest_count_that_heads_share(models):
    """k rows of each layer: in Llama-3-8B a step is 32 rows of q and 8 of k and v each, 48 of 3 layers' 3 k."""
    for k, steps in ((1, 1), (20, 1), (24, 2), (128, 8)):
        resolved = RowSFT(attention="grouped").solve(Budget(rows=k), models["llama3_8b"], Targets())
        rows = resolved.values["rows_pattern"]
        assert rows["model.layers.3.self_attn.q_proj"] == 32 * steps
        assert rows["model.layers.3.self_attn.k_proj"] == rows["model.layers.3.self_attn.v_proj"] == 8 * steps
        assert rows["model.layers.3.self_attn.o_proj"] == k
        assert resolved.asked == k * 1_245_184
        assert resolved.achieved == 32 * (4096 * (48 * steps + k + 2 * k) + 14336 * k)


def test_a_small_grouped_budget_reaches_the_lower_blocks_first(models):
    resolved = RowSFT(attention="grouped").solve(Budget(), models["llama2_7b"], Targets())
    rows = resolved.values["rows_pattern"]
    tuned = [block for block in range(32) if f"model.layers.{block}.self_attn.q_proj" in rows]
    assert tuned == list(range(len(tuned)))
    assert 0 < len(tuned) < 32


@pytest.mark.parametrize(
    ("channel", "sizes"),
    [
        ("rows", {"q": (4, 0), "k": (2, 0), "down": (4, 0)}),
        ("columns", {"q": (0, 4), "k": (0, 4), "down": (0, 8)}),
        ("both", {"q": (2, 2), "k": (1, 2), "down": (2, 4)}),
        ("neurons", {"q": (16, 0), "k": (8, 0), "down": (0, 8)}),
    ],
)
def test_a_ratio_is_a_share_of_what_the_channel_counts(channel, sizes):
    model = tiny_llama()
    resolved = RowSFT(channel=channel, ratio=0.12).solve(Budget(), model, Targets())
    names = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "down": "mlp.down_proj"}
    for short, (rows, columns) in sizes.items():
        name = f"model.layers.1.{names[short]}"
        assert resolved.values["rows_pattern"].get(name, 0) == rows
        assert resolved.values["columns_pattern"].get(name, 0) == columns
    assert resolved.achieved == entries(RowSFT(), model, resolved)


@pytest.mark.parametrize(
    ("channel", "attention", "rows", "message"),
    [
        (
            "columns",
            "linear",
            33,
            r"rows=33 exceeds layer model.layers.0.self_attn.q_proj \(32 columns\); lower budget.rows",
        ),
        ("both", "linear", 40, r"rows=40 exceeds layer model.layers.0.self_attn.k_proj \(31 rows and columns\)"),
        ("neurons", "linear", 3, r"rows=3 exceeds module model.layers.0.self_attn \(2 heads\); .* budget.clip=true"),
        ("neurons", "skip", 65, r"rows=65 exceeds module model.layers.0.mlp \(64 hidden units\)"),
        ("rows", "grouped", 40, r"rows=40 exceeds module model.layers.0.self_attn \(8 shared rows a head\)"),
    ],
)
def test_more_than_there_is_is_refused_by_name_or_clipped(channel, attention, rows, message):
    method = RowSFT(channel=channel, attention=attention)
    with pytest.raises(UserError, match=message):
        method.solve(Budget(rows=rows), tiny_llama(), Targets())
    resolved = method.solve(Budget(rows=rows, clip=True), tiny_llama(), Targets())
    assert resolved.achieved == entries(method, tiny_llama(), resolved)
    assert resolved.achieved < resolved.asked


@pytest.mark.parametrize("channel", CHANNELS)
def test_a_budget_below_one_step_names_it(channel):
    with pytest.raises(UserError, match=r"budget\.params=10 allows 10 parameters, less than the \d+ that the smallest"):
        RowSFT(channel=channel).solve(Budget(params=10), tiny_llama(), Targets())
    with pytest.raises(UserError, match="leaves row_sft nothing to train"):
        RowSFT(channel=channel).solve(Budget(ratio=0.0), tiny_llama(), Targets())


@pytest.mark.parametrize("channel", CHANNELS)
def test_everything_is_as_much_as_a_channel_can_train(channel):
    model = tiny_llama()
    everything = sum(layer.weight.numel() for layer in eligible_layers(model, Targets()).values())
    assert RowSFT(channel=channel).solve(Budget(params=everything), model, Targets()).achieved == everything
    with pytest.raises(UserError, match=rf"asks for {everything + 1} parameters, but all .* have {everything}; lower"):
        RowSFT(channel=channel).solve(Budget(params=everything + 1), model, Targets())
