"""Saving and loading through peft and through transformers, and what must be refused."""

import json

import pytest
import torch
from peft import (
    AutoPeftModel,
    AutoPeftModelForCausalLM,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from rows import CHANNELS, FAMILIES, adapt, family, logits, random_rows, same, shake, train
from safetensors.torch import load_file, save_file
from tiny import tiny_llama
from transformers import AutoModelForCausalLM

from rowsft import RowSFTConfig
from rowsft.errors import UserError
from rowsft.tuner import RowSFTLayer

families = pytest.mark.parametrize("name", FAMILIES)
channels = pytest.mark.parametrize("channel", CHANNELS)


@pytest.fixture
def saved(tmp_path):
    """A base model saved to disk, an adapter trained on it and saved, a batch and the adapted logits."""
    base = tmp_path / "base"
    tiny_llama().save_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    _, batch, targets = family("llama")
    tuned = adapt(model, targets, task_type="CAUSAL_LM").train()
    train(tuned, batch)
    tuned.eval()
    tuned.save_pretrained(tmp_path / "adapter")
    return base, tmp_path / "adapter", batch, logits(tuned, batch)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@channels
@families
def test_peft_round_trip(name, low_cpu_mem_usage, channel, tmp_path):
    model, batch, targets = family(name)
    base = logits(model, batch)
    tuned = adapt(model, targets, channel=channel).train()
    train(tuned, batch)
    tuned.eval()
    expected = logits(tuned, batch)
    tuned.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(family(name)[0], tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(logits(loaded, batch), expected)
    assert not torch.equal(expected, base)
    assert not any(p.requires_grad for p in loaded.parameters())


def test_every_way_of_loading(saved):
    base, adapter, batch, expected = saved
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(adapter), batch), expected)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(adapter), batch), expected)
    plain = AutoModelForCausalLM.from_pretrained(base)
    plain.load_adapter(adapter)
    assert torch.equal(logits(plain, batch), expected)
    second = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter, adapter_name="first")
    second.load_adapter(adapter, "second")
    second.set_adapter("second")
    assert torch.equal(logits(second, batch), expected)


@pytest.mark.parametrize("through", ["peft", "transformers"])
def test_loading_on_a_sixteen_bit_base_keeps_thirty_two_bit_rows(through, saved):
    base, adapter, batch, expected = saved
    if through == "peft":
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16), adapter)
    else:
        model = AutoModelForCausalLM.from_pretrained(adapter, dtype=torch.bfloat16)
    layers = [module for module in model.modules() if isinstance(module, RowSFTLayer)]
    assert {layer.weight.dtype for layer in layers} == {torch.bfloat16}
    assert {layer.row_sft_delta["default"].dtype for layer in layers} == {torch.float32}
    assert {layer.row_sft_ids["default"].dtype for layer in layers} == {torch.int64}
    torch.testing.assert_close(logits(model, batch).float(), expected, rtol=0.1, atol=0.05)


def test_auto_peft_model_without_a_task_type(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    _, batch, targets = family("llama")
    tuned = adapt(model, targets)
    shake(tuned)
    tuned.save_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(AutoPeftModel.from_pretrained(tmp_path / "adapter"), batch), logits(tuned, batch))


def test_training_goes_on_after_loading(saved):
    base, adapter, batch, _ = saved
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter, is_trainable=True)
    before = loaded(**batch).loss
    train(loaded, batch)
    assert loaded(**batch).loss < before


def test_resuming_into_the_live_model(saved):
    base, adapter, batch, expected = saved
    model, _, targets = family("llama")
    tuned = adapt(model, targets, seed=5)
    shake(tuned)
    assert not torch.equal(logits(tuned, batch), expected)
    tuned.load_adapter(adapter, "default", is_trainable=True)
    assert torch.equal(logits(tuned, batch), expected)
    train(tuned, batch, steps=1)


def test_the_adapter_file_holds_ids_deltas_and_biases_only(tmp_path):
    model, _, targets = family("bert")
    ids = random_rows(model, targets)
    adapt(model, targets).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    expected = {f"base_model.model.{name}.row_sft_{part}" for name in ids for part in ("delta", "bias", "ids")}
    assert tensors.keys() == expected
    for name, rows in ids.items():
        saved = tensors[f"base_model.model.{name}.row_sft_ids"]
        assert saved.dtype == torch.int64
        assert torch.equal(saved, rows)


@channels
def test_modules_to_save(tmp_path, channel):
    model, batch, targets = family("bert")
    head = model.classifier.weight.detach().clone()
    tuned = adapt(model, targets, modules_to_save=["classifier"], channel=channel).train()
    assert {n for n, p in tuned.named_parameters() if p.requires_grad and "row_sft_" not in n} == {
        "base_model.model.classifier.modules_to_save.default.weight",
        "base_model.model.classifier.modules_to_save.default.bias",
    }
    train(tuned, batch)
    tuned.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(family("bert")[0], tmp_path)
    assert torch.equal(logits(loaded, batch), logits(tuned.eval(), batch))
    merged = loaded.merge_and_unload()
    assert torch.equal(logits(merged, batch), logits(tuned, batch))
    assert not torch.equal(merged.classifier.weight, head)


def test_saving_leaves_the_live_config_able_to_choose_rows_again(tmp_path):
    model, _, _ = family("llama")
    config = RowSFTConfig(rows=2, importance="l2", target_modules=["q_proj"])
    get_peft_model(model, config).save_pretrained(tmp_path)
    assert not config.rows_in_checkpoint
    assert json.loads((tmp_path / "adapter_config.json").read_text())["rows_in_checkpoint"] is True
    again, batch, _ = family("llama")
    tuned = get_peft_model(again, config)
    weight = again.model.layers[0].self_attn.q_proj
    norms = weight.get_base_layer().weight.square().sum(1)
    assert torch.equal(weight.row_sft_ids["default"], norms.topk(2).indices.sort().values)
    logits(tuned, batch)


@pytest.mark.parametrize("channel", ["rows", "columns", "both"])
def test_a_saved_config_starts_a_new_training(channel, tmp_path):
    config = RowSFTConfig(rows=4, channel=channel, target_modules=["q_proj", "down_proj"])
    config.save_pretrained(tmp_path)
    fresh, batch, _ = family("llama")
    again = get_peft_model(fresh, RowSFTConfig.from_pretrained(tmp_path))
    expected = get_peft_model(family("llama")[0], config)
    assert same(get_peft_model_state_dict(again), get_peft_model_state_dict(expected))
    train(again, batch)
    train(expected, batch)
    assert torch.equal(logits(again, batch), logits(expected, batch))


def test_an_adapter_loaded_for_more_training_brings_its_own_ids(saved):
    base, adapter, batch, expected = saved
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter, is_trainable=True)
    assert torch.equal(logits(loaded, batch), expected)


def test_values_without_their_ids_are_refused(saved, tmp_path):
    base, adapter, _, _ = saved
    tensors = load_file(adapter / "adapter_model.safetensors")
    lost = next(name for name in tensors if name.endswith("row_sft_ids"))
    del tensors[lost]
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text((adapter / "adapter_config.json").read_text())
    with pytest.raises(UserError, match=r"the checkpoint has row_sft_delta of .* but no row_sft_ids"):
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path, is_trainable=True)


def test_a_loaded_config_without_its_tensors_is_refused(saved):
    _, adapter, batch, _ = saved
    config = PeftConfig.from_pretrained(adapter)
    assert isinstance(config, RowSFTConfig)
    fresh = get_peft_model(family("llama")[0], config)
    layer = next(module for module in fresh.modules() if isinstance(module, RowSFTLayer))
    assert (layer.row_sft_ids["default"] == -1).all()
    with pytest.raises(UserError, match=r"'default' has no row ids for layer model\.layers\.0.*from_pretrained"):
        fresh(**batch)
    with pytest.raises(UserError, match="has no row ids"):
        fresh.merge_and_unload()


def test_the_config_of_a_loaded_model_is_refused_too(saved):
    base, adapter, batch, _ = saved
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    fresh = get_peft_model(family("llama")[0], loaded.peft_config["default"])
    with pytest.raises(UserError, match="has no row ids"):
        fresh(**batch)


def test_loading_on_another_base(saved, tmp_path):
    _, adapter, _, _ = saved
    with pytest.raises(UserError, match=r"row_sft_delta.default has shape \(3, 32\) in the checkpoint, \(3, 64\)"):
        PeftModel.from_pretrained(tiny_llama(hidden_size=64), adapter)
    with pytest.raises(UserError, match=r"rows=3 exceeds layer .*gate_proj \(2 rows\)"):
        PeftModel.from_pretrained(tiny_llama(intermediate_size=2), adapter)
    with pytest.raises(UserError, match="rows_pattern names model.layers.1"):
        PeftModel.from_pretrained(tiny_llama(num_hidden_layers=1), adapter)
    with pytest.raises(UserError, match="rows_pattern names"):
        PeftModel.from_pretrained(family("gpt2")[0], adapter)


def test_rows_of_layers_that_the_model_lacks_are_refused(tmp_path):
    config = RowSFTConfig(rows=2, target_modules=["q_proj"])
    get_peft_model(tiny_llama(), config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"has row_sft_\w+\S* of .*layers\.1\.self_attn\.q_proj"):
        PeftModel.from_pretrained(tiny_llama(num_hidden_layers=1), tmp_path)
    deeper = PeftModel.from_pretrained(tiny_llama(num_hidden_layers=3), tmp_path)
    with pytest.raises(UserError, match=r"no row ids for layer model\.layers\.2"):
        deeper(**family("llama")[1])


def test_row_ids_beyond_the_layer_are_refused(tmp_path):
    model, _, _ = family("llama")
    config = RowSFTConfig(target_modules=["gate_proj"], rows=2, row_ids={
        f"model.layers.{i}.mlp.gate_proj": [0, 63] for i in range(2)
    })  # fmt: skip
    get_peft_model(model, config).save_pretrained(tmp_path)
    smaller = PeftModel.from_pretrained(tiny_llama(intermediate_size=48), tmp_path)
    with pytest.raises(UserError, match=r"gate_proj run from 0 to 63, but it has rows 0 to 47"):
        logits(smaller, family("llama")[1])


def test_frozen_layers_stay_out_of_the_adapter(tmp_path):
    model, batch, _ = family("llama")
    pattern = {"model.layers.0.self_attn.q_proj": 0, "model.layers.1.self_attn.q_proj": 5}
    config = RowSFTConfig(target_modules=["q_proj", "v_proj"], rows=2, rows_pattern=pattern, importance="l1")
    tuned = get_peft_model(model, config)
    train(tuned, batch)
    assert isinstance(model.model.layers[0].self_attn.q_proj, torch.nn.Linear)
    tuned.save_pretrained(tmp_path)
    names = load_file(tmp_path / "adapter_model.safetensors").keys()
    assert not any("layers.0.self_attn.q_proj" in name for name in names)
    loaded = PeftModel.from_pretrained(family("llama")[0], tmp_path)
    assert torch.equal(logits(loaded, batch), logits(tuned, batch))
    assert len(loaded.base_model.model.model.layers[1].self_attn.q_proj.row_sft_ids["default"]) == 5


def test_sizes_taken_from_row_ids_survive_saving(tmp_path):
    model, batch, targets = family("llama")
    ids = {"model.layers.0.self_attn.q_proj": [7], "model.layers.1.mlp.up_proj": [1, 60, 5]}
    tuned = get_peft_model(model, RowSFTConfig(target_modules=targets, row_ids=ids))
    shake(tuned)
    tuned.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(family("llama")[0], tmp_path)
    assert torch.equal(logits(loaded, batch), logits(tuned, batch))
    assert sum(p.numel() for n, p in loaded.named_parameters() if "row_sft_" in n) == 32 + 3 * 32


@pytest.mark.parametrize(("channel", "size"), [("rows", 3), ("columns", 4)])
def test_injection_from_a_state_dict(channel, size):
    model, batch, targets = family("llama")
    tuned = adapt(model, targets, channel=channel)
    shake(tuned)
    state = get_peft_model_state_dict(tuned)
    bare = {key.removeprefix("base_model.model."): value for key, value in state.items()}
    plain = family("llama")[0]
    config = RowSFTConfig(rows=size, channel=channel, target_modules=["q_proj"], rows_in_checkpoint=True)
    with pytest.warns(RuntimeWarning, match="additional target modules"):
        inject_adapter_in_model(config, plain, state_dict=bare)
    set_peft_model_state_dict(plain, state)
    assert torch.equal(logits(plain, batch), logits(tuned, batch))
