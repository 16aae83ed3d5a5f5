"""Row-SFT adapters as LoRA adapters: the same change of W to the bit, in PEFT as it comes."""

import json
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from rows import FAMILIES, adapt, family, logits, out_rows, shake, train
from safetensors.torch import load_file, save_file
from tiny import tiny_llama
from torch import nn
from transformers import AutoModelForCausalLM, MambaConfig, MambaForCausalLM

from rowsft import RowSFTConfig
from rowsft.errors import UserError
from rowsft.export import lora, to_lora

PREFIX = "base_model.model."
# Run in a process where importing rowsft fails, as it does where it is not installed.
ALONE = """
import sys
sys.modules["rowsft"] = None
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import {auto}

base, adapter, batch, out = sys.argv[1:]
model = PeftModel.from_pretrained({auto}.from_pretrained(base), adapter)
with torch.no_grad():
    unmerged = model(**load_file(batch)).logits
    merged = model.merge_and_unload()(**load_file(batch)).logits
save_file({{"unmerged": unmerged, "merged": merged}}, out)
"""


def adapted(name, dtype=torch.float32, **settings):
    """(adapted model with an update that is not zero, batch, a fresh base)."""
    model, batch, targets = family(name, dtype)
    tuned = adapt(model, targets, **settings)
    shake(tuned)
    return tuned, batch, family(name, dtype)[0]


def columns_and_rows(base, targets, rows, columns, seed=0):
    """A saved adapter with rows and columns of every target layer, and {layer: dense update (d_out, d_in)} by loops."""
    generator = torch.Generator().manual_seed(seed)
    tensors, dense = {}, {}
    for name, layer in base.named_modules():
        if not any(name.endswith(f".{target}") for target in targets):
            continue
        d_out, d_in = out_rows(layer).shape
        row_ids = torch.randperm(d_out, generator=generator)[:rows]
        column_ids = torch.randperm(d_in, generator=generator)[:columns]
        row_delta = torch.randn(rows, d_in, generator=generator)
        column_delta = torch.randn(d_out - rows, columns, generator=generator)
        update = torch.zeros(d_out, d_in)
        for place, row in enumerate(row_ids.tolist()):
            update[row] = row_delta[place]
        for place, row in enumerate(row for row in range(d_out) if row not in row_ids.tolist()):
            for at, column in enumerate(column_ids.tolist()):
                update[row, column] = column_delta[place, at]
        dense[name] = update
        if rows:
            tensors[f"{PREFIX}{name}.{lora.ROW_IDS}"] = row_ids
            tensors[f"{PREFIX}{name}.{lora.ROW_DELTA}"] = row_delta
        if columns:
            tensors[f"{PREFIX}{name}.{lora.COLUMN_IDS}"] = column_ids
            tensors[f"{PREFIX}{name}.{lora.COLUMN_DELTA}"] = column_delta
    return tensors, dense


@pytest.mark.parametrize("name", FAMILIES)
def test_the_lora_adapter_computes_the_same(name, tmp_path):
    tuned, batch, base = adapted(name)
    to_lora(tuned, tmp_path / "lora")
    expected = logits(tuned, batch)
    model = PeftModel.from_pretrained(base, tmp_path / "lora")
    assert model.peft_config["default"].peft_type == "LORA"
    torch.testing.assert_close(logits(model, batch), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(model.merge_and_unload(), batch), logits(tuned.merge_and_unload(), batch))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_merged_into_a_sixteen_bit_base_to_the_bit(dtype, tmp_path):
    tuned, batch, base = adapted("llama", dtype)
    to_lora(tuned, tmp_path / "lora")
    merged = PeftModel.from_pretrained(base, tmp_path / "lora").merge_and_unload()
    assert torch.equal(logits(merged, batch), logits(tuned.merge_and_unload(), batch))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("rows", "columns"), [(3, 0), (0, 4), (3, 2)])
def test_rows_columns_and_their_sum_give_the_same_weights(name, rows, columns, tmp_path):
    base, _, targets = family(name)
    tensors, dense = columns_and_rows(base, targets, rows, columns)
    adapter = lora.convert(tensors, base)
    assert set(adapter.ranks.values()) == {rows + columns}
    adapter.write(tmp_path, {})
    merged = PeftModel.from_pretrained(family(name)[0], tmp_path).merge_and_unload()
    for layer, update in dense.items():
        before, after = (out_rows(model.get_submodule(layer)) for model in (base, merged))
        assert torch.equal(after, before + update), layer


def test_uneven_layers_keep_their_own_rank_and_a_scaling_of_one(tmp_path):
    model, batch, _ = family("llama")
    ids = {"model.layers.0.self_attn.q_proj": [7], "model.layers.1.self_attn.q_proj": [1, 30, 5]}
    tuned = get_peft_model(model, RowSFTConfig(target_modules=["q_proj"], row_ids=ids))
    shake(tuned)
    to_lora(tuned, tmp_path / "lora")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 3
    assert config["rank_pattern"] == config["alpha_pattern"] == {r"^model\.layers\.0\.self_attn\.q_proj": 1}
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path / "lora")
    layers = {n: m for n, m in loaded.base_model.model.named_modules() if n in ids}
    assert {n: (m.r["default"], m.scaling["default"]) for n, m in layers.items()} == {
        n: (len(ids[n]), 1.0) for n in ids
    }
    torch.testing.assert_close(logits(loaded, batch), logits(tuned, batch), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "auto"), [("llama", "AutoModelForCausalLM"), ("bert", "AutoModelForSequenceClassification")]
)
def test_it_loads_where_this_package_is_not(name, auto, tmp_path):
    settings = {"modules_to_save": ["classifier"]} if name == "bert" else {}
    family(name)[0].save_pretrained(tmp_path / "base")
    tuned, batch, _ = adapted(name, **settings)
    if name == "bert":
        train(tuned, batch, steps=1)
        tuned.eval()
    to_lora(tuned, tmp_path / "lora")
    save_file(batch, tmp_path / "batch.safetensors")
    paths = [str(tmp_path / part) for part in ("base", "lora", "batch.safetensors", "out.safetensors")]
    done = subprocess.run(
        [sys.executable, "-c", ALONE.format(auto=auto), *paths], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    out = load_file(tmp_path / "out.safetensors")
    torch.testing.assert_close(out["unmerged"], logits(tuned, batch), rtol=1e-5, atol=1e-5)
    assert torch.equal(out["merged"], logits(tuned.merge_and_unload(), batch))


def test_a_saved_folder_converts_as_the_live_model_does(tmp_path):
    family("llama")[0].save_pretrained(tmp_path / "base")
    targets = family("llama")[2]
    tuned = adapt(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), targets)
    shake(tuned)
    tuned.save_pretrained(tmp_path / "adapter")
    to_lora(tuned, tmp_path / "live")
    to_lora(tmp_path / "adapter", tmp_path / "saved")
    live, saved = (load_file(tmp_path / kind / "adapter_model.safetensors") for kind in ("live", "saved"))
    assert live.keys() == saved.keys() and all(torch.equal(live[key], saved[key]) for key in live)
    assert (tmp_path / "live" / "adapter_config.json").read_text() == (
        tmp_path / "saved" / "adapter_config.json"
    ).read_text()


def test_trained_biases_are_kept_with_a_warning_or_refused(tmp_path):
    tuned, _, _ = adapted("bert")
    (warning,) = to_lora(tuned, tmp_path / "kept")
    assert "vLLM does not read lora_bias" in warning
    with pytest.raises(UserError, match=r"trains biases \(layer bert\.encoder.*--biases keep, --to merged"):
        to_lora(tuned, tmp_path / "refused", biases="refuse")
    assert not (tmp_path / "refused").exists()
    without, _, _ = adapted("bert", train_bias=False)
    assert to_lora(without, tmp_path / "without", biases="refuse") == []
    with pytest.raises(UserError, match="biases=drop: unknown"):
        to_lora(without, tmp_path / "dropped", biases="drop")


def test_a_layer_without_a_bias_among_layers_with_one(tmp_path):
    model = tiny_llama(attention_bias=True)
    _, batch, _ = family("llama")
    tuned = adapt(model, ["q_proj", "up_proj"])
    shake(tuned)
    warnings = to_lora(tuned, tmp_path / "lora")
    assert any("up_proj has no bias, so PEFT can load this adapter but not merge it" in text for text in warnings)
    loaded = PeftModel.from_pretrained(tiny_llama(attention_bias=True), tmp_path / "lora")
    torch.testing.assert_close(logits(loaded, batch), logits(tuned, batch), rtol=1e-5, atol=1e-5)


def test_a_rank_beyond_what_vllm_reads_is_said(tmp_path):
    tuned = adapt(tiny_llama(intermediate_size=600), ["up_proj"], rows=513)
    (warning,) = to_lora(tuned, tmp_path / "lora")
    assert warning.startswith("rank 513 of layer model.layers.0.mlp.up_proj: vLLM reads ranks up to 512")


def test_a_name_that_is_the_ending_of_another_hits_its_own_layer_only():
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(4, 5, bias=False)
            self.inner = nn.ModuleDict({"lin": nn.Linear(4, 5, bias=False)})

    tensors = {f"{PREFIX}lin.{lora.ROW_IDS}": torch.tensor([1]), f"{PREFIX}lin.{lora.ROW_DELTA}": torch.ones(1, 4)}
    adapter = lora.convert(tensors, Nested())
    wrapped = get_peft_model(Nested(), LoraConfig(r=1, target_modules=adapter.target_modules))
    assert isinstance(wrapped.base_model.model.inner["lin"], nn.Linear)
    assert not isinstance(wrapped.base_model.model.lin, nn.Linear)


def test_an_adapter_of_another_base_is_refused():
    base, _, targets = family("llama")
    tensors, _ = columns_and_rows(base, targets, 2, 1)
    for other, message in (
        (tiny_llama(num_hidden_layers=1), r"update of model\.layers\.1.*LlamaForCausalLM does not have"),
        (
            tiny_llama(hidden_size=64),
            r"row_sft_delta of layer .* has shape \(2, 32\), the base model asks for \(2, 64\)",
        ),
        (tiny_llama(intermediate_size=4), r"row_sft_ids of layer .*gate_proj run from \d+ to \d+; expected .* 0 to 3"),
    ):
        with pytest.raises(UserError, match=message):
            lora.convert(tensors, other)


def test_a_change_that_is_not_finite_is_refused():
    base, _, targets = family("llama")
    tensors, _ = columns_and_rows(base, targets, 1, 0)
    next(value for key, value in tensors.items() if key.endswith(lora.ROW_DELTA))[0, 3] = float("nan")
    with pytest.raises(UserError, match=r"row_sft_delta of layer model\.layers\.0.* is not finite"):
        lora.convert(tensors, base)


def test_what_cannot_be_exported_is_said_and_leaves_nothing(tmp_path):
    tuned, _, _ = adapted("llama")
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="there: exists already, and an export overwrites nothing"):
        to_lora(tuned, tmp_path / "there")
    with pytest.raises(UserError, match="to_lora got a LlamaForCausalLM; expected a PeftModel"):
        to_lora(tiny_llama(), tmp_path / "plain")
    other = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(UserError, match=r"adapter 'default' is .*LORA"):
        to_lora(other, tmp_path / "lora")
    other.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    (tmp_path / "saved" / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "x"}))
    with pytest.raises(UserError, match="is a LoRA adapter already, in .*saved; there is nothing to convert"):
        to_lora(tmp_path / "saved", tmp_path / "lora")
    with pytest.raises(UserError, match="no adapter_config.json in this folder"):
        to_lora(tmp_path / "there", tmp_path / "lora")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saved", "there"]


def test_layers_in_which_peft_loads_no_lora_are_named_and_nothing_is_written(tmp_path):
    mamba = MambaForCausalLM(MambaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, state_size=2))
    model = adapt(mamba, ["in_proj", "out_proj"])
    with pytest.raises(UserError, match="no LoRA of layer backbone.layers.0.mixer.out_proj .* use --to merged"):
        to_lora(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())
