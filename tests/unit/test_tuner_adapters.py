"""Several adapters on one base: together, switched, disabled, merged, deleted, moved and copied."""

import copy
import io
import pickle

import pytest
import torch
from peft import get_peft_model
from rows import (
    CHANNELS,
    FAMILIES,
    adapt,
    add_update,
    chosen_entries,
    family,
    layer_ids,
    logits,
    others_of,
    out_rows,
    random_ids,
    random_rows,
    row_layers,
    same,
    shake,
    train,
    weights,
)
from torch import nn

from rowsft import RowSFTConfig
from rowsft.errors import UserError
from rowsft.tuner import RowSFTLayer

families = pytest.mark.parametrize("name", FAMILIES)
channels = pytest.mark.parametrize("channel", CHANNELS)


PAIRS = (("out", "out"), ("in", "in"), ("half", "half"), ("out", "in"), ("in", "half"), ("half", "neuron"))
pairs = pytest.mark.parametrize("pair", PAIRS)


def two_adapters(name, pair=("out", "out"), dtype=torch.float64):
    """Adapters `default` and `other` of these channels, away from zero, that share some rows and some columns."""
    model, batch, targets = family(name, dtype)
    plain = copy.deepcopy(model)
    mine = random_ids(model, targets, "half", 8, 0)
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


def summed(plain, tuned, names):
    """The plain model with the named adapters' updates added by hand."""
    dense = copy.deepcopy(plain)
    for layer_name, layer in row_layers(tuned).items():
        for adapter in names:
            add_update(dense.get_submodule(layer_name), layer, adapter)
    return dense


@pairs
def test_forward_and_gradients_of_two_active_adapters(pair):
    plain, tuned, batch = two_adapters("bert", pair)
    tuned.base_model.set_adapter(["default", "other"])
    dense = summed(plain, tuned, ["default", "other"])
    loss, dense_loss = tuned(**batch).loss, dense(**batch).loss
    torch.testing.assert_close(loss, dense_loss, rtol=1e-13, atol=0)
    loss.backward()
    dense_loss.backward()
    for layer_name, module in row_layers(tuned).items():
        layer = dense.get_submodule(layer_name)
        full = out_rows(layer, layer.weight.grad)
        for adapter in ("default", "other"):
            rows, columns = layer_ids(module, adapter)
            expected = {
                "row_sft_delta": full[rows],
                "row_sft_bias": layer.bias.grad[rows],
                "row_sft_column_delta": full[others_of(rows, len(full))][:, columns],
            }
            for kind, reference in expected.items():
                if adapter in getattr(module, kind):
                    grad = getattr(module, kind)[adapter].grad
                    torch.testing.assert_close(grad, reference, rtol=1e-9, atol=1e-14)


@pairs
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_crossing_updates_are_summed_wide_and_restored_bit_for_bit(dtype, pair):
    plain, tuned, batch = two_adapters("gpt2", pair, dtype)
    before = weights(plain)
    tuned.base_model.set_adapter(["default", "other"])
    logits(tuned, batch)
    wide = summed(plain.double(), tuned, ["default", "other"])
    for layer_name, layer in row_layers(tuned).items():
        written, exact = layer.get_base_layer().weight, wide.get_submodule(layer_name).weight
        # One rounding is half a unit in the last place; two would show as more.
        assert ((written.double() - exact).abs() <= 0.51 * torch.finfo(dtype).eps * exact.abs() + 1e-8).all()
        touched = chosen_entries(layer, "default") | chosen_entries(layer, "other")
        base = before[f"{layer_name}.weight"]
        assert not (out_rows(layer.get_base_layer(), written != base) & ~touched).any()
    assert same(weights(tuned.unload()), before)


@pytest.mark.parametrize(
    ("name", "pair"), [*(("gpt2", pair) for pair in PAIRS), ("llama", ("half", "half")), ("bert", ("half", "neuron"))]
)
def test_switching_disabling_and_deleting(name, pair):
    plain, tuned, batch = two_adapters(name, pair)
    base = logits(plain, batch)
    expected = {
        names: logits(summed(plain, tuned, names), batch) for names in (("default",), ("other",), ("default", "other"))
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
    torch.testing.assert_close(other, logits(summed(plain, tuned, ["other"]), batch), rtol=1e-12, atol=1e-13)
    tuned.base_model.set_adapter(["default"])
    for grad, reference in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        torch.testing.assert_close(grad, reference, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@channels
@families
def test_merge_and_unmerge_are_exact(name, dtype, channel):
    model, batch, targets = family(name, dtype)
    before = weights(model)
    tuned = adapt(model, targets, channel=channel)
    shake(tuned)
    unmerged = logits(tuned, batch)
    assert not torch.equal(unmerged, logits(family(name, dtype)[0], batch))
    tuned.merge_adapter(safe_merge=True)
    assert torch.equal(logits(tuned, batch), unmerged)
    merged = {key: value for key, value in weights(tuned).items() if "row_sft_" not in key}
    tuned.unmerge_adapter()
    pristine = {key: value for key, value in weights(tuned).items() if "row_sft_" not in key}
    assert not same(merged, pristine)
    assert all(torch.equal(left, right) for left, right in zip(pristine.values(), before.values(), strict=True))
    assert torch.equal(logits(tuned, batch), unmerged)
    plain = tuned.merge_and_unload()
    assert torch.equal(logits(plain, batch), unmerged)
    assert weights(plain).keys() == before.keys()
    assert not any(isinstance(module, RowSFTLayer) for module in plain.modules())


def test_merging_one_adapter_after_the_other():
    plain, tuned, batch = two_adapters("llama")
    tuned.merge_adapter(["default"])
    tuned.merge_adapter(["other"])
    torch.testing.assert_close(
        logits(tuned, batch), logits(summed(plain, tuned, ["default", "other"]), batch), rtol=1e-12, atol=1e-13
    )
    with tuned.disable_adapter():
        assert torch.equal(logits(tuned, batch), logits(plain, batch))
    assert same(weights(tuned.unload()), weights(plain))


def test_safe_merge_refuses_and_changes_nothing():
    model, batch, targets = family("llama")
    before = weights(model)
    tuned = adapt(model, targets)
    layer = model.model.layers[1].mlp.up_proj
    with torch.no_grad():
        layer.row_sft_delta["default"][0, 0] = float("nan")
    with pytest.raises(ValueError, match="up_proj would not be finite"):
        layer.merge(safe_merge=True)
    assert not layer.merged
    assert same(weights(tuned.unload()), before)


@channels
@families
def test_get_delta_weight_is_what_merging_adds(name, channel):
    model, _, targets = family(name, torch.float64)
    before = weights(model)
    tuned = adapt(model, targets, train_bias=False, channel=channel)
    shake(tuned)
    deltas = {
        module.layer_name: module.get_delta_weight("default")
        for module in tuned.modules()
        if isinstance(module, RowSFTLayer)
    }
    after = tuned.merge_and_unload().state_dict()
    for layer, delta in deltas.items():
        torch.testing.assert_close(before[f"{layer}.weight"] + delta, after[f"{layer}.weight"], rtol=0, atol=0)


@channels
@families
def test_conversion_to_lora_is_exact(name, channel):
    from peft import LoraConfig, set_peft_model_state_dict
    from peft.tuners.lora.conversion import convert_to_lora

    model, batch, targets = family(name, torch.float64)
    plain = copy.deepcopy(model)
    tuned = adapt(model, targets, rows=3, train_bias=False, channel=channel)
    shake(tuned)
    assert tuned.supports_lora_conversion()
    config, state = convert_to_lora(tuned, rank=8)
    lora = get_peft_model(plain, LoraConfig(**config.to_dict()))
    set_peft_model_state_dict(lora, state)
    torch.testing.assert_close(logits(lora, batch), logits(tuned, batch), rtol=1e-5, atol=1e-6)


def test_trained_biases_cannot_become_lora():
    model, _, targets = family("bert")
    assert not adapt(model, targets).supports_lora_conversion()


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


@pytest.mark.parametrize("change", ["in place", "replaced", "moved"])
def test_a_weight_changed_behind_the_layers_back_is_refused(change):
    model, batch, targets = family("llama")
    tuned = adapt(model, targets)
    logits(tuned, batch)
    base_layer = model.model.layers[0].self_attn.q_proj.base_layer
    if change == "in place":
        with torch.no_grad():
            base_layer.weight.mul_(2)
    elif change == "replaced":
        base_layer.weight = nn.Parameter(base_layer.weight.clone(), requires_grad=False)
    else:
        base_layer.weight.data = base_layer.weight.data.clone()
    with pytest.raises(UserError, match=r"layers\.0\.self_attn\.q_proj.*restore_base_weights"):
        logits(tuned, batch)


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


def test_restore_base_weights_allows_changes_from_outside():
    model, batch, targets = family("llama")
    tuned = adapt(model, targets)
    shake(tuned)
    logits(tuned, batch)
    tuned.base_model.restore_base_weights()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, RowSFTLayer):
                module.get_base_layer().weight.mul_(2)
    changed = logits(tuned, batch)
    twin, _, _ = family("llama")
    with torch.no_grad():
        for name in random_rows(twin, targets):
            twin.get_submodule(name).weight.mul_(2)
    twin = adapt(twin, targets)
    shake(twin)
    assert torch.equal(changed, logits(twin, batch))


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


@pytest.mark.parametrize("notice", ["merge", "train", "eval"])
def test_values_written_through_data_are_noticed(notice):
    """No version counter sees `.data`; merging and changing the mode look again all the same."""
    model, batch, targets = family("llama")
    tuned = adapt(model, targets)
    shake(tuned)
    logits(tuned, batch)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data.mul_(3)
    expected = adapt(family("llama")[0], targets)
    shake(expected, scale=3 * 0.05)
    {"merge": tuned.merge_adapter, "train": tuned.train, "eval": tuned.eval}[notice]()
    torch.testing.assert_close(logits(tuned, batch), logits(expected, batch), rtol=1e-5, atol=1e-6)


def test_a_merged_state_dict_goes_back_into_the_merged_model():
    model, batch, targets = family("llama")
    before = weights(model)
    tuned = adapt(model, targets)
    shake(tuned)
    expected = logits(tuned, batch)
    tuned.merge_adapter()
    merged = weights(tuned)
    tuned.load_state_dict(merged)
    assert torch.equal(logits(tuned, batch), expected)
    tuned.load_state_dict(
        {key: 2 * value if key.endswith("base_layer.weight") else value for key, value in merged.items()}
    )
    with pytest.raises(UserError, match="was changed, moved or replaced"):
        tuned.unmerge_adapter()
    tuned.load_state_dict(merged)
    tuned.unmerge_adapter()
    assert same(weights(tuned.unload()), before)


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
