"""Several adapters on one base: together, switched, disabled, merged, deleted, moved and copied."""

import copy

import pytest
import torch
from dense import dense_gradients, dense_model, values
from peft import get_peft_model
from rows import (
    CHANNELS,
    FAMILIES,
    PAIRS,
    adapt,
    chosen_entries,
    family,
    logits,
    out_rows,
    random_ids,
    random_rows,
    row_layers,
    same,
    shake,
    train,
    weights,
)

from rowsft import RowSFTConfig
from rowsft.errors import UserError

families = pytest.mark.parametrize("name", FAMILIES)
channels = pytest.mark.parametrize("channel", CHANNELS)


pairs = pytest.mark.parametrize("pair", PAIRS)


def two_adapters(name, pair=("rows", "rows"), dtype=torch.float64):
    """Adapters `default` and `other` of these channels, away from zero, that share some rows and some columns."""
    model, batch, targets = family(name, dtype)
    plain = copy.deepcopy(model)
    mine = random_ids(model, targets, "both", 8, 0)
    configs = {}
    for adapter, channel in zip(("default", "other"), pair, strict=True):
        ids = random_ids(model, targets, channel, 6, 1)
        for kind in ids:
            for layer in ids[kind]:
                own, lent = ids[kind][layer], mine[kind][layer]
                overlapping = torch.cat([own[~torch.isin(own, lent)][:3], lent[[5, 0, 3]]])
                ids[kind][layer] = lent if adapter == "default" else overlapping
        configs[adapter] = RowSFTConfig(target_modules=targets, channel=channel, **ids)
    tuned = get_peft_model(model, configs["default"])
    tuned.add_adapter("other", configs["other"])
    shake(tuned, "default", 2)
    shake(tuned, "other", 3)
    return plain, tuned, batch


@pairs
def test_forward_and_gradients_of_two_active_adapters(pair):
    plain, tuned, batch = two_adapters("bert", pair)
    tuned.base_model.set_adapter(["default", "other"])
    dense = dense_model(plain, tuned, ["default", "other"])
    loss, dense_loss = tuned(**batch).loss, dense(**batch).loss
    torch.testing.assert_close(loss, dense_loss, rtol=1e-13, atol=0)
    loss.backward()
    dense_loss.backward()
    expected = dense_gradients(dense, tuned, ["default", "other"])
    for key, parameter in values(tuned, ["default", "other"]).items():
        torch.testing.assert_close(parameter.grad, expected[key], rtol=1e-9, atol=1e-14)


@pairs
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_crossing_updates_are_summed_wide_and_restored_bit_for_bit(dtype, pair):
    plain, tuned, batch = two_adapters("gpt2", pair, dtype)
    before = weights(plain)
    tuned.base_model.set_adapter(["default", "other"])
    # A graph waits, so the values are written.
    waiting = tuned(**batch)
    wide = dense_model(plain.double(), tuned, ["default", "other"])
    for layer_name, layer in row_layers(tuned).items():
        written, exact = layer.get_base_layer().weight, wide.get_submodule(layer_name).weight
        # One rounding is half a unit in the last place; two would show as more.
        assert ((written.double() - exact).abs() <= 0.51 * torch.finfo(dtype).eps * exact.abs() + 1e-8).all()
        touched = chosen_entries(layer, "default") | chosen_entries(layer, "other")
        base = before[f"{layer_name}.weight"]
        assert not (out_rows(layer.get_base_layer(), written != base) & ~touched).any()
    del waiting
    assert same(weights(tuned.unload()), before)


@pytest.mark.parametrize(
    ("name", "pair"), [*(("gpt2", pair) for pair in PAIRS), ("llama", ("both", "both")), ("bert", ("both", "neurons"))]
)
def test_switching_disabling_and_deleting(name, pair):
    plain, tuned, batch = two_adapters(name, pair)
    base = logits(plain, batch)
    expected = {
        names: logits(dense_model(plain, tuned, names), batch)
        for names in (("default",), ("other",), ("default", "other"))
    }
    assert not torch.allclose(expected[("default",)], expected[("other",)])
    for names in (("default",), ("other",), ("default", "other"), ("other",), ("default",)):
        tuned.base_model.set_adapter(list(names))
        torch.testing.assert_close(logits(tuned, batch), expected[names], rtol=1e-12, atol=1e-13)
        with tuned.disable_adapter():
            assert torch.equal(logits(tuned, batch), base)
        torch.testing.assert_close(logits(tuned, batch), expected[names], rtol=1e-12, atol=1e-13)
    tuned.delete_adapter("default")
    tuned.set_adapter("other")
    torch.testing.assert_close(logits(tuned, batch), expected[("other",)], rtol=1e-12, atol=1e-13)
    assert same(weights(tuned.unload()), weights(plain))


def test_switching_between_a_forward_and_its_backward():
    plain, tuned, batch = two_adapters("llama")
    tuned.base_model.set_adapter(["default"])
    parameters = [p for p in tuned.parameters() if p.requires_grad]
    expected = torch.autograd.grad(tuned(**batch).loss, parameters)
    loss = tuned(**batch).loss
    tuned.base_model.set_adapter(["other"])
    other = logits(tuned, batch)
    torch.testing.assert_close(other, logits(dense_model(plain, tuned, ["other"]), batch), rtol=1e-12, atol=1e-13)
    tuned.base_model.set_adapter(["default"])
    for grad, reference in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        torch.testing.assert_close(grad, reference, rtol=1e-12, atol=1e-16)


def test_merging_one_adapter_after_the_other():
    plain, tuned, batch = two_adapters("llama")
    tuned.merge_adapter(["default"])
    tuned.merge_adapter(["other"])
    torch.testing.assert_close(
        logits(tuned, batch), logits(dense_model(plain, tuned, ["default", "other"]), batch), rtol=1e-12, atol=1e-13
    )
    with tuned.disable_adapter():
        assert torch.equal(logits(tuned, batch), logits(plain, batch))
    assert same(weights(tuned.unload()), weights(plain))


@channels
@families
def test_disable_after_training_is_the_base_bit_for_bit(name, channel):
    model, batch, targets = family(name)
    base = logits(model, batch)
    tuned = adapt(model, targets, channel=channel).train()
    train(tuned, batch)
    tuned.eval()
    trained = logits(tuned, batch)
    with tuned.disable_adapter():
        assert torch.equal(logits(tuned, batch), base)
    assert torch.equal(logits(tuned, batch), trained)


def test_an_adapter_deleted_and_added_again_with_other_rows():
    model, batch, targets = family("llama")
    before = weights(model)
    tuned = adapt(model, targets)
    spare = random_rows(family("llama")[0], targets)
    tuned.add_adapter("spare", RowSFTConfig(target_modules=targets, row_ids=spare))
    for seed in range(1, 5):
        shake(tuned, "default", seed)
        logits(tuned, batch)
        tuned.delete_adapter("default")
        layer = model.model.layers[0].mlp.up_proj
        assert torch.equal(layer.get_base_layer().weight, before["model.layers.0.mlp.up_proj.weight"])
        ids = random_rows(family("llama")[0], targets, seed=seed)
        tuned.add_adapter("default", RowSFTConfig(target_modules=targets, row_ids=ids))
        tuned.set_adapter("default")
        shake(tuned, "default", seed)
        twin = get_peft_model(family("llama")[0], RowSFTConfig(target_modules=targets, row_ids=ids))
        shake(twin, "default", seed)
        assert torch.equal(logits(tuned, batch), logits(twin, batch))


def test_transformers_own_adapter_methods():
    model, batch, targets = family("llama")
    base = logits(model, batch)
    model.add_adapter(RowSFTConfig(target_modules=targets, row_ids=random_rows(model, targets)), "mine")
    shake(model, "mine")
    changed = logits(model, batch)
    assert not torch.equal(changed, base)
    model.disable_adapters()
    assert torch.equal(logits(model, batch), base)
    model.enable_adapters()
    assert torch.equal(logits(model, batch), changed)


def test_a_batch_that_mixes_adapters_is_refused():
    model, batch, targets = family("llama")
    tuned = adapt(model, targets).eval()
    with pytest.raises(UserError, match="a batch cannot mix row-SFT adapters"):
        tuned(**batch, adapter_names=["default", "__base__"])
    assert torch.equal(tuned(**batch, adapter_names=None).logits, tuned(**batch).logits)
