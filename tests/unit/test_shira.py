"""SHiRA as a method of the suite: its count, where it starts, what it saves and merges, and what PEFT's cannot do."""

from copy import deepcopy

import pytest
import torch
from peft import PeftModel
from tiny import causal_batch, classification_batch, tiny_bert, tiny_gpt2, tiny_llama

from rowsft.baselines.shira import Shira
from rowsft.errors import UserError
from rowsft.layers.matrix import layer_shape
from rowsft.methods.base import method_class
from rowsft.selection.budget import Budget
from rowsft.selection.targets import Targets, eligible_layers

LIKE_LORA = Budget(like={"method": "lora", "r": 2})
CASES = {
    "llama": (tiny_llama, causal_batch, Targets()),
    "bert": (tiny_bert, classification_batch, Targets(head_modules=["classifier", "bert.pooler"])),
}


def attached(case, seed=0):
    build, make, targets = CASES[case]
    model, method = build(), method_class("shira")(seed=seed)
    base = deepcopy(model)
    resolved = method.solve(LIKE_LORA, model, targets)
    return method, resolved, method.attach(model, resolved), base, make()


def train(model, batch, steps=3):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def logits(model, batch):
    with torch.no_grad():
        return model.eval()(**batch).logits


@pytest.mark.parametrize("case", CASES)
def test_as_many_parameters_as_lora_and_the_same_start(case):
    method, resolved, wrapped, base, batch = attached(case)
    layers = eligible_layers(base, CASES[case][2])
    assert resolved.asked == resolved.achieved == sum(2 * sum(layer_shape(layer)) for layer in layers.values())
    assert method.trainable(wrapped)["adapter"] == resolved.achieved
    torch.testing.assert_close(logits(wrapped, batch), logits(base, batch), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_training_saves_loads_and_merges_to_sparse_changes(case, tmp_path):
    method, _, wrapped, base, batch = attached(case)
    train(wrapped, batch)
    expected = logits(wrapped, batch)
    method.save(wrapped, tmp_path)
    loaded = PeftModel.from_pretrained(deepcopy(base), tmp_path)
    torch.testing.assert_close(logits(loaded, batch), expected, rtol=1e-5, atol=1e-6)
    merged = method.merge(wrapped)
    torch.testing.assert_close(logits(merged, batch), expected, rtol=1e-4, atol=1e-5)
    for name, layer in eligible_layers(base, CASES[case][2]).items():
        changed = (merged.get_submodule(name).weight != layer.weight).sum()
        assert 0 < changed <= 2 * sum(layer_shape(layer)), name


def test_the_seed_settles_the_entries():
    def entries(seed):
        wrapped = attached("llama", seed)[2]
        return [m.shira_indices["default"] for m in wrapped.modules() if hasattr(m, "shira_indices")]

    first, again, other = entries(1), entries(1), entries(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_budget_that_one_r_cannot_meet_is_warned_of(caplog):
    whole = sum(sum(layer_shape(layer)) for layer in eligible_layers(tiny_llama(), Targets()).values())
    far = Shira().solve(Budget(params=5 * whole // 2), tiny_llama(), Targets())
    assert (far.asked, far.achieved, far.values["r"]) == (5 * whole // 2, 2 * whole, 2)
    (warning,) = caplog.messages
    assert "one r for all layers" in warning and "(-20.0 %)" in warning
    near = Shira().solve(Budget(params=2 * whole + whole // 60), tiny_llama(), Targets())
    assert near.achieved == 2 * whole and len(caplog.messages) == 1


def test_more_than_all_entries_is_refused():
    with pytest.raises(UserError, match="r=300 exceeds layer"):
        Shira(r=300).solve(Budget(), tiny_llama(), Targets())


def test_conv1d_is_refused():
    with pytest.raises(UserError, match=r"layer transformer\.h\.0\.attn\.c_attn is a Conv1D"):
        Shira().solve(LIKE_LORA, tiny_gpt2(), Targets())
