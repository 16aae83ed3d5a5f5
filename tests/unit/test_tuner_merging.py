"""An adapter merged, taken out again, and turned into LoRA."""

import copy

import pytest
import torch
from peft import get_peft_model
from rows import (
    CHANNELS,
    FAMILIES,
    PAIRS,
    adapt,
    family,
    logits,
    same,
    shake,
    weights,
)
from torch import nn

from rowsft.errors import UserError
from rowsft.tuner import RowSFTLayer

families = pytest.mark.parametrize("name", FAMILIES)
channels = pytest.mark.parametrize("channel", CHANNELS)


pairs = pytest.mark.parametrize("pair", PAIRS)


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
    with pytest.raises(UserError, match="was changed while adapter values were written"):
        tuned.unmerge_adapter()
    tuned.load_state_dict(merged)
    tuned.unmerge_adapter()
    assert same(weights(tuned.unload()), before)


def replace_parameter(layer):
    layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)


def replace_data(layer):
    layer.weight.data = layer.weight.data.clone()


@pytest.mark.parametrize("replace", [replace_parameter, replace_data])
@pytest.mark.parametrize("use", ["unmerge", "disable", "unload", "merge_and_unload", "backward"])
def test_a_weight_that_was_replaced_while_merged_is_named(replace, use):
    model, batch, targets = family("llama")
    tuned = adapt(model, targets)
    shake(tuned)
    tuned.merge_adapter()
    layer = tuned.base_model.model.model.layers[1].self_attn.k_proj
    replace(layer.get_base_layer())

    def disable():
        with tuned.disable_adapter():
            tuned(**batch)

    def backward():
        tuned.enable_input_require_grads()
        tuned(**batch).loss.backward()

    uses = {
        "unmerge": tuned.unmerge_adapter,
        "disable": disable,
        "unload": tuned.unload,
        "merge_and_unload": tuned.merge_and_unload,
        "backward": backward,
    }
    with pytest.raises(UserError, match=r"layers\.1\.self_attn\.k_proj was replaced while adapters \['default'\] were"):
        uses[use]()
