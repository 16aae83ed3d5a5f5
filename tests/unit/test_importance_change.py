"""change, the choice of NeFT: against cosines by hand in float64, out of one file, of shards, and of other dtypes."""

from dataclasses import replace

import pytest
import torch
from refusals import refusal
from scoring import AXES, CASES, close_axes, layers_of, oriented, same, snapshot, weights
from scoring import score_axes as score_eligible
from test_presets import BUDGET, chosen, preset
from tiny import causal_batch, tiny_bert, tiny_gpt2, tiny_llama
from torch import nn
from transformers import BertModel

from rowsft import score
from rowsft.importance import Context, score_layers
from rowsft.importance.change import _turned
from rowsft.measure.memory import AllocationPeak
from rowsft.methods.base import selected
from rowsft.methods.row_sft import RowSFT
from rowsft.models.changed import ChangedWeights
from rowsft.selection.budget import Budget
from rowsft.selection.targets import Targets


def finetuned(model, amount: float = 1e-3):
    """The same model with noise on every weight but that of the even rows of each layer."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in layers_of(model).values():
            weight = oriented(layer, layer.weight)
            weight[1::2] += amount * torch.randn(weight[1::2].shape, generator=generator, dtype=torch.float64).to(
                weight
            )
    return model


def scores_of(model, folder, importance="change"):
    return score_eligible(model, importance, changed=ChangedWeights(folder, model, "method.changed"))


def by_hand(before, after):
    """1 - cos in float64; the cosine of a random change of a thousandth is 5e-7 below 1, which 64 bit resolve."""
    return {
        name: {
            axis: 1 - torch.cosine_similarity(before[name].double(), after[name].double(), dim=1 - index)
            for index, axis in enumerate(AXES)
        }
        for name in before
    }


@pytest.mark.parametrize("shards", ["5GB", "20KB"])
@pytest.mark.parametrize("case", CASES)
def test_it_is_one_less_the_cosine(case, shards, tmp_path):
    build = CASES[case][0]
    model, other = build(torch.float64), finetuned(build(torch.float64))
    other.save_pretrained(tmp_path, max_shard_size=shards)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shards == "20KB")
    before = snapshot(model)
    found = scores_of(model, tmp_path)
    assert same(before, snapshot(model))
    close_axes(found, by_hand(weights(model), weights(other)), atol=1e-14)
    for scores in found.values():
        assert not scores["rows"][::2].any() and (scores["rows"][1::2] > 0).all()
    turned = scores_of(model, tmp_path, "lowest(change)")
    assert all(torch.equal(turned[name]["rows"], -found[name]["rows"]) for name in found)


def test_small_turns_keep_their_order():
    """Below the rounding of a cosine, even in 64 bit."""
    before = torch.eye(4, dtype=torch.float64)[:3] * 7
    angles = torch.tensor([1e-9, 3e-9, 2e-9], dtype=torch.float64)
    after = before.clone()
    after[:, 3] = 7 * angles
    assert not (1 - torch.cosine_similarity(before, after)).any()
    torch.testing.assert_close(_turned(before, after), angles**2 / 2, rtol=1e-6, atol=0)


def test_zero_rows_and_lengths():
    before = torch.tensor([[0.0, 0], [0, 0], [1, 2], [1, 2], [1, 2]], dtype=torch.float64)
    after = torch.tensor([[0.0, 0], [1, 0], [0, 0], [3, 6], [-1, -2]], dtype=torch.float64)
    torch.testing.assert_close(_turned(before, after), torch.tensor([0.0, 1, 1, 0, 2], dtype=torch.float64))


@pytest.mark.parametrize(("own", "stored"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_rounding_is_no_change(own, stored, tmp_path):
    finetuned(tiny_llama(), 0.1).to(stored).save_pretrained(tmp_path)
    for scores in scores_of(tiny_llama().to(own), tmp_path).values():
        assert not scores["rows"][::2].any() and (scores["rows"][1::2] > 1e-4).all()


def test_a_model_without_its_head_is_found_in_one_with_it_and_the_other_way(tmp_path):
    whole, other = tiny_bert(), finetuned(tiny_bert())
    other.save_pretrained(tmp_path / "whole")
    other.bert.save_pretrained(tmp_path / "bare")
    bare = BertModel(whole.config)
    bare.load_state_dict(whole.bert.state_dict(), strict=False)
    expected = by_hand(weights(whole), weights(other))
    close_axes(scores_of(whole, tmp_path / "bare"), expected, atol=1e-7)
    found = scores_of(bare, tmp_path / "whole")
    close_axes({f"bert.{name}": each for name, each in found.items() if "pooler" not in name}, expected, atol=1e-7)


def test_layers_are_read_one_at_a_time(tmp_path):
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4}
    model = tiny_llama(**sizes, num_hidden_layers=4)
    # safetensors maps the whole file that it reads of, which counts as allocated here.
    finetuned(tiny_llama(**sizes, num_hidden_layers=4)).save_pretrained(tmp_path, max_shard_size="600KB")
    context = Context(model, changed=ChangedWeights(tmp_path, model, "method.changed"))
    with AllocationPeak(torch.device("cpu")) as peak:
        score_layers(layers_of(model), "change", context, AXES)
    assert peak.new_peak_bytes < sum(4 * layer.weight.numel() for layer in layers_of(model).values()) / 3


@pytest.mark.parametrize("channel", ["rows", "columns", "both", "neurons"])
def test_neft_chooses_what_has_turned_the_most(channel, tmp_path):
    model, other = tiny_llama(), finetuned(tiny_llama(), 0.1)
    other.save_pretrained(tmp_path)
    expected = by_hand(weights(model), weights(other))
    _, ids = chosen(preset("neft", changed=str(tmp_path), channel=channel), model, Budget(rows=4, clip=True))
    if channel == "neurons":
        for block in range(2):
            gate, up, down = (f"model.layers.{block}.mlp.{part}_proj" for part in ("gate", "up", "down"))
            parts = [(gate, "rows"), (up, "rows"), (down, "columns")]
            units = sum(expected[name][axis] / expected[name][axis].mean() for name, axis in parts)
            assert ids[gate][0] == ids[up][0] == ids[down][1] == units.topk(4).indices.sort().values.tolist()
        return
    rows, columns = {"rows": (4, 0), "columns": (0, 4), "both": (2, 2)}[channel]
    for name, scores in expected.items():
        for axis, count, found in zip(AXES, (rows, columns), ids[name], strict=True):
            assert found == scores[axis].topk(count).indices.sort().values.tolist()


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_the_sizes_are_those_of_row_sft(build, tmp_path):
    finetuned(build()).save_pretrained(tmp_path)
    model, method = build(), preset("neft", changed=str(tmp_path))
    resolved = selected(method, model, method.solve(BUDGET, model, Targets()))
    assert resolved.achieved == RowSFT(importance="l2").solve(BUDGET, model, Targets()).achieved
    batch = causal_batch()
    before = model(**batch).logits.detach()
    assert torch.equal(method.attach(model, resolved)(**batch).logits, before)


def test_it_asks_for_the_second_checkpoint():
    assert "method.changed" in refusal(score, tiny_llama(), "change")
    assert "needs method.changed: the folder" in refusal(RowSFT, importance="change")
    assert "needs method.changed" in refusal(RowSFT, importance="lowest(change)")
    assert "leave out method.changed=a, or use" in refusal(RowSFT, importance="l2", changed="a")


def test_what_is_no_checkpoint_of_this_model_is_said(tmp_path):
    def said(folder, model=None):
        method = RowSFT(importance="change", changed=str(folder))
        return refusal(method.solve, Budget(rows=2), model or tiny_llama(), Targets())

    assert "no such folder; expected a folder with the whole model" in said(tmp_path / "none")
    for name, other in (
        ("gpt2", tiny_gpt2()),
        ("wide", tiny_llama(intermediate_size=96)),
        ("one", tiny_llama(num_hidden_layers=1)),
    ):
        other.save_pretrained(tmp_path / name)
    assert "a checkpoint of a gpt2 model; expected one of this run's, llama" in said(tmp_path / "gpt2")
    assert "layer model.layers.0.mlp.gate_proj has a weight of shape (96, 32) there and (64, 32)" in said(
        tmp_path / "wide"
    )
    assert "hold no model.layers.1.self_attn.q_proj.weight" in said(tmp_path / "one")
    (tmp_path / "one/model.safetensors").write_bytes(b"no")
    assert "cannot be read" in said(tmp_path / "one")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    assert "holds an adapter alone (adapter_config.json)" in said(adapter)
    (tmp_path / "empty").mkdir()
    assert "no config.json in this folder" in said(tmp_path / "empty")
    tiny_llama().save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    min((tmp_path / "shards").glob("*.safetensors")).unlink()
    assert "no model-00001-of" in said(tmp_path / "shards")
    (tmp_path / "shards/model.safetensors.index.json").write_text("[]")
    assert "model.safetensors.index.json: cannot be read" in said(tmp_path / "shards")
    with torch.device("meta"):
        planned = tiny_llama()
    tiny_llama().save_pretrained(tmp_path / "whole")
    right = RowSFT(importance="change", changed=str(tmp_path / "whole"))
    assert right.solve(Budget(rows=2), planned, Targets()).achieved
    assert "(96, 32) there" in said(tmp_path / "wide", planned)
    quantised = replace(right, changed=str(tmp_path / "whole"))
    layer = nn.Linear(32, 32)
    layer.weight = nn.Parameter(torch.zeros(512, 1, dtype=torch.uint8), requires_grad=False)
    model = tiny_llama()
    model.model.layers[0].self_attn.q_proj = layer
    assert "this base's are quantised" in refusal(quantised.solve, Budget(rows=2), model, Targets())
