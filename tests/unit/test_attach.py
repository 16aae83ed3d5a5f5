"""The public face for every channel, scope and attention mode: what is scored, what is trained, and how much of it."""

import json
from copy import deepcopy

import pytest
import torch
from peft import get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from tiny import causal_batch, classification_batch, tiny_bert, tiny_gpt2, tiny_llama

from rowsft import RowSFTConfig, attach, score
from rowsft.errors import UserError
from rowsft.layers.matrix import layer_shape
from rowsft.methods.base import method_class
from rowsft.selection.budget import Budget
from rowsft.selection.targets import Targets, eligible_layers
from rowsft.tuner.attach import plan_rows

CASES = {
    "llama": (tiny_llama, causal_batch, Targets()),
    "gpt2": (tiny_gpt2, causal_batch, Targets()),
    "bert": (tiny_bert, classification_batch, Targets(head_modules=["classifier", "bert.pooler"])),
}
CHANNELS = ("rows", "columns", "both", "neurons")
MODES = [
    *[
        (channel, "linear", scope)
        for channel in ("rows", "columns", "both", "neurons")
        for scope in ("layer", "global")
    ],
    *[(channel, "grouped", scope) for channel in ("rows", "columns") for scope in ("layer", "global")],
    *[(channel, "skip", "layer") for channel in CHANNELS],
]


def adapter_parameters(wrapped):
    return sum(p.numel() for n, p in wrapped.named_parameters() if p.requires_grad and "modules_to_save" not in n)


def wrapped_layers(wrapped):
    return {n for n, module in wrapped.base_model.model.named_modules() if isinstance(module, BaseTunerLayer)}


@torch.no_grad()
def logits(model, batch):
    return model.eval()(**batch).logits


@pytest.mark.parametrize("budget", [{"rows": 2}, {"params": 4000}])
@pytest.mark.parametrize(("channel", "attention", "scope"), MODES)
@pytest.mark.parametrize("case", CASES)
def test_the_method_trains_exactly_what_its_resolved_sizes_claim(case, channel, attention, scope, budget):
    build, make, targets = CASES[case]
    model, batch = build(), make()
    base = deepcopy(model)
    method = method_class("row_sft")(channel=channel, attention=attention, importance="l1")
    solved = method.solve(Budget(**budget, scope=scope), model, targets)
    resolved = method.select(model, solved, [])
    wrapped = method.attach(model, resolved)
    assert method.trainable(wrapped)["adapter"] == resolved.achieved == adapter_parameters(wrapped)
    assert wrapped_layers(wrapped) == set(resolved.values["target_modules"])
    assert json.loads(json.dumps(resolved.values)) == resolved.values
    torch.testing.assert_close(logits(wrapped, batch), logits(base, batch), rtol=1e-5, atol=1e-6)
    if scope == "layer":
        assert resolved.achieved == solved.achieved
    if "params" in budget:
        assert resolved.asked == 4000
        assert 0 <= 4000 - resolved.achieved < 130
    elif (attention, channel) != ("grouped", "rows"):
        assert sum(map(sum, _counts(resolved))) == sum(map(sum, _counts(solved)))


def _counts(resolved):
    """Rows, columns; of coupled units, heads and hidden units apart, which a global choice exchanges one for one."""
    rows, columns = resolved.values["rows_pattern"], resolved.values["columns_pattern"]
    if resolved.values["channel"] == "neurons":
        widths = {"down_proj": 1, "mlp.c_proj": 1, "intermediate.dense": 0, "o_proj": 16, "attn.c_proj": 8}
        widths |= {"attention.output.dense": 8, "output.dense": 1}
        consumed = [
            count // next(width for ending, width in widths.items() if name.endswith(ending))
            for name, count in columns.items()
        ]
        return [consumed]
    return [rows.values(), columns.values()]


@pytest.mark.parametrize("importance", ["l2", "random", "lowest(l1)"])
@pytest.mark.parametrize(("channel", "attention", "scope"), MODES)
def test_peft_alone_and_attach_choose_alike(channel, attention, scope, importance):
    settings = {"channel": channel, "attention": attention, "scope": scope, "importance": importance, "seed": 3}
    config = RowSFTConfig(rows=2, target_modules="all-linear", **settings)
    by_peft, by_attach = get_peft_model(tiny_llama(), deepcopy(config)), attach(tiny_llama(), config)
    assert wrapped_layers(by_peft) == wrapped_layers(by_attach)
    left, right = ({n: t for n, t in m.state_dict().items() if "row_sft_" in n} for m in (by_peft, by_attach))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert config.row_ids is None
    assert config.rows == 2
    settled = by_attach.peft_config["default"]
    assert json.loads(json.dumps(settled.to_dict()))["channel"] == channel


@pytest.mark.parametrize(("channel", "attention", "scope"), MODES)
def test_a_saved_adapter_brings_its_choice_along(channel, attention, scope, tmp_path):
    config = RowSFTConfig(rows=2, target_modules="all-linear", channel=channel, attention=attention, scope=scope)
    wrapped, batch = attach(tiny_llama(), config), causal_batch()
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.05)
    expected = logits(wrapped, batch)
    wrapped.save_pretrained(tmp_path)
    loaded = type(wrapped).from_pretrained(tiny_llama(), tmp_path)
    torch.testing.assert_close(logits(loaded, batch), expected, rtol=1e-6, atol=1e-7)
    assert not torch.allclose(expected, logits(tiny_llama(), batch), atol=1e-3)


def test_layers_without_a_choice_are_not_wrapped():
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.zero_()
    config = RowSFTConfig(rows=1, scope="global", importance="l2", target_modules="all-linear")
    wrapped = attach(model, config)
    assert "model.layers.1.mlp.up_proj" not in wrapped_layers(wrapped)
    ids = wrapped.peft_config["default"].row_ids
    assert sum(len(each) for each in ids.values()) == 14


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2, tiny_bert])
def test_scores_of_every_channel(build):
    model = build()
    layers = eligible_layers(model, Targets())
    for channel, side in (("rows", 0), ("columns", 1)):
        scores = score(model, "l1", channel=channel)
        assert {n: len(s) for n, s in scores.items()} == {n: layer_shape(layer)[side] for n, layer in layers.items()}
    both = score(model, "l1", channel="both")
    assert all(list(of_layer) == ["rows", "columns"] for of_layer in both.values())
    assert all(torch.equal(both[name]["columns"], scores[name]) for name in layers)
    units = score(model, "l1", channel="neurons")
    assert sorted({len(each) for each in units.values()}) == [2 if build is tiny_llama else 4, 64]
    for each in units.values():
        # Relative to the average of every member, and so of mean 1.
        assert each.mean().item() == pytest.approx(1.0, abs=1e-6)


def test_scores_need_a_known_channel():
    with pytest.raises(UserError, match="channel=row: unknown; use one of rows, columns, both, neurons"):
        score(tiny_llama(), "l1", channel="row")


def test_calibration_may_be_any_iterable():
    batches = [causal_batch(seed=seed) for seed in (1, 2)]
    listed = score(tiny_llama(), "taylor", batches, target_modules=["q_proj"])
    streamed = score(tiny_llama(), "taylor", iter(batches), target_modules=["q_proj"])
    assert all(torch.equal(listed[name], streamed[name]) for name in listed)
    config = RowSFTConfig(rows=2, importance="taylor", target_modules=["q_proj"])
    chosen = attach(tiny_llama(), config, (batch for batch in batches)).peft_config["default"].row_ids
    assert all(set(chosen[name].tolist()) == set(listed[name].topk(2).indices.tolist()) for name in listed)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"rows": 33},
            r"rows=33 exceeds layer model.layers.0.self_attn.q_proj \(32 rows\); lower rows or exclude",
        ),
        ({"rows": 3, "channel": "neurons"}, r"rows=3 exceeds module model.layers.0.self_attn \(2 heads\); lower rows"),
        ({}, "no size is set; give rows, ratio, rows_pattern"),
        (
            {"channel": "neurons", "rows_pattern": {"model.layers.0.mlp.up_proj": 3}},
            "rows_pattern names model.layers.0.mlp.up_proj, which shares its units with other layers",
        ),
        (
            {"rows": 1, "rows_pattern": {"up_proj": 3}},
            "rows_pattern names up_proj, which .* such as model.layers",
        ),
        ({"rows_pattern": {"model.layers.0.mlp.up_proj": 0}}, "every target layer is left with nothing to train"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(settings, message):
    model = tiny_llama()
    config = RowSFTConfig(importance="l1", target_modules="all-linear", **settings)
    with pytest.raises(UserError, match=message):
        plan_rows(model, eligible_layers(model, Targets()), config)


def test_patterns_set_the_sizes_of_single_layers():
    model = tiny_llama()
    q, up = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"
    config = RowSFTConfig(rows=3, rows_pattern={q: 0, up: 5}, channel="both", columns_pattern={up: 2}, importance="l1")
    chosen = plan_rows(model, eligible_layers(model, Targets()), config)
    sizes = {name: (len(choice.rows), len(choice.columns)) for name, choice in chosen.items()}
    assert (sizes.pop(q), sizes.pop(up)) == ((0, 1), (5, 2))
    assert set(sizes.values()) == {(2, 1)}


def test_a_pattern_may_size_a_layer_that_is_smaller_than_the_rest():
    model, small = tiny_llama(), "self_attn.k_proj"
    patterns = {f"model.layers.{block}.{small}": 16 for block in range(2)}
    config = RowSFTConfig(rows=20, rows_pattern=patterns, importance="l1")
    layers = eligible_layers(model, Targets(["q_proj", "k_proj"]))
    chosen = plan_rows(model, layers, config)
    assert [len(choice.rows) for choice in chosen.values()] == [20, 16, 20, 16]
