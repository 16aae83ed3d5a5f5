"""Copies, moves and changes from outside of the weight that the values are written into."""

import copy
import io
import pickle

import pytest
import torch
from rows import (
    CHANNELS,
    FAMILIES,
    PAIRS,
    adapt,
    family,
    logits,
    same,
    shake,
    train,
    weights,
)
from torch import nn

from rowsft.errors import UserError
from rowsft.tuner import RowSFTLayer

families = pytest.mark.parametrize("name", FAMILIES)
channels = pytest.mark.parametrize("channel", CHANNELS)


pairs = pytest.mark.parametrize("pair", PAIRS)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
@channels
def test_copies_are_independent(how, merged, channel):
    model, batch, targets = family("bert")
    before = weights(model)
    tuned = adapt(model, targets, channel=channel)
    shake(tuned)
    expected = logits(tuned, batch)
    tuned(**batch).loss.backward()
    if merged:
        tuned.merge_adapter()
    if how == "deepcopy":
        twin = copy.deepcopy(tuned)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(tuned))
    else:
        torch.save(tuned, buffer := io.BytesIO())
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    assert torch.equal(logits(tuned, batch), expected)
    assert torch.equal(logits(twin, batch), expected)
    if merged:
        twin.unmerge_adapter()
        assert torch.equal(logits(twin, batch), expected)
    shake(twin, seed=11)
    assert not torch.equal(logits(twin, batch), expected)
    assert torch.equal(logits(tuned, batch), expected)
    assert same(weights(twin.unload()), before)
    assert same(weights(tuned.unload()), before)


@pytest.mark.parametrize("merged", [False, True])
@channels
def test_changing_dtype_while_values_are_written(merged, channel):
    model, batch, targets = family("llama")
    reference = weights(copy.deepcopy(model).double())
    tuned = adapt(model, targets, channel=channel)
    shake(tuned)
    logits(tuned, batch)
    if merged:
        tuned.merge_adapter()
    tuned.double()
    converted = logits(tuned, batch)
    twin = adapt(family("llama")[0].double(), targets, channel=channel)
    twin.load_state_dict(tuned.state_dict()) if not merged else shake(twin)
    torch.testing.assert_close(converted, logits(twin, batch), rtol=1e-6, atol=1e-7)
    assert same(weights(tuned.unload()), reference)


def test_loading_a_base_weight_captures_it_anew():
    model, batch, targets = family("llama")
    tuned = adapt(model, targets)
    shake(tuned)
    logits(tuned, batch)
    fresh = family("llama")[0]
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.mul_(1.5)
    state = weights(fresh)
    layers = {module.layer_name for module in tuned.modules() if isinstance(module, RowSFTLayer)}
    model.load_state_dict(
        {
            f"{layer}.base_layer.weight" if (layer := key.rpartition(".")[0]) in layers else key: value
            for key, value in state.items()
        },
        strict=False,
    )
    twin = adapt(fresh, targets)
    shake(twin)
    assert torch.equal(logits(tuned, batch), logits(twin, batch))
    assert same(weights(tuned.unload()), state)


@pytest.mark.parametrize("change", ["in place", "through data", "replaced", "moved"])
def test_a_weight_changed_between_forwards_is_the_new_base(change):
    model, batch, targets = family("llama")
    tuned = adapt(model, targets)
    shake(tuned)
    train(tuned, batch, steps=1)
    fresh, _, _ = family("llama")
    for module, name in (
        (model, "model.layers.0.self_attn.q_proj.base_layer"),
        (fresh, "model.layers.0.self_attn.q_proj"),
    ):
        layer = module.get_submodule(name)
        if change == "in place":
            with torch.no_grad():
                layer.weight.mul_(2)
        elif change == "through data":
            layer.weight.data.mul_(2)
        elif change == "replaced":
            layer.weight = nn.Parameter(2 * layer.weight.detach(), requires_grad=False)
        else:
            layer.weight.data = 2 * layer.weight.data
    expected = weights(fresh)
    twin = adapt(fresh, targets)
    with torch.no_grad():
        for own, other in zip(twin.parameters(), tuned.parameters(), strict=True):
            own.copy_(other)
    assert torch.equal(logits(tuned, batch), logits(twin, batch))
    assert same(weights(tuned.unload()), expected)


def test_a_weight_changed_while_a_graph_waits_is_refused():
    model, batch, targets = family("llama")
    tuned = adapt(model, targets)
    shake(tuned)
    waiting = tuned(**batch)
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.base_layer.weight.mul_(2)
    shake(tuned, seed=8)
    with pytest.raises(UserError, match=r"layers\.0\.self_attn\.q_proj was changed while"):
        tuned(**batch)
    with pytest.warns(RuntimeWarning, match=r"layers\.0\.self_attn\.q_proj was changed while"):
        del waiting
    tuned(**batch).loss.backward()


@channels
@families
def test_a_weight_written_with_what_it_holds_is_accepted(name, channel):
    """DDP does so to every parameter when it wraps a model that has run already."""
    model, batch, targets = family(name)
    before = weights(model)
    tuned = adapt(model, targets, channel=channel)
    shake(tuned)
    expected = logits(tuned, batch)

    def broadcast():
        with torch.no_grad():
            for parameter in tuned.parameters():
                parameter.copy_(parameter.clone())

    broadcast()
    assert torch.equal(logits(tuned, batch), expected)
    broadcast()
    assert same(weights(tuned.unload()), before)


@pytest.mark.parametrize("notice", ["merge", "train", "eval"])
def test_values_written_through_data_are_noticed(notice):
    """No version counter sees `.data`; merging and changing the mode look again all the same."""
    model, batch, targets = family("llama")
    tuned = adapt(model, targets)
    shake(tuned)
    waiting = tuned(**batch)
    assert waiting.loss.requires_grad
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data.mul_(3)
    expected = adapt(family("llama")[0], targets)
    shake(expected, scale=3 * 0.05)
    {"merge": tuned.merge_adapter, "train": tuned.train, "eval": tuned.eval}[notice]()
    torch.testing.assert_close(logits(tuned, batch), logits(expected, batch), rtol=1e-5, atol=1e-6)


def test_inference_mode_and_back():
    model, batch, targets = family("llama")
    tuned = adapt(model, targets)
    shake(tuned)
    with torch.inference_mode():
        expected = tuned(**batch).logits.clone()
    copy.deepcopy(tuned)
    train(tuned, batch, steps=1)
    with torch.inference_mode(), tuned.disable_adapter():
        tuned(**batch)
    assert not torch.equal(logits(tuned, batch), expected)
    assert same(weights(tuned.unload()), weights(family("llama")[0]))
