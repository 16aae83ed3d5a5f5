"""The tuner on a CUDA device in bfloat16, against a dense model in float32 and against LoRA."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model
from rows import CHANNELS, add_update, layer_ids, others_of, out_rows, random_ids, row_layers, shake
from tiny import causal_batch, tiny_llama

from rowsft import RowSFTConfig
from rowsft.export.lora import active_adapter, convert

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: bfloat16 products on it"),
]
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Heads of 64, as the fused attention kernels take them.
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
CUDA = torch.device("cuda")


def tuned_llama(channel="rows", size=16, **settings):
    """A bfloat16 Llama on the GPU with shaken rows, and a batch."""
    model = tiny_llama(torch.bfloat16, **WIDE).to(CUDA)
    ids = random_ids(model, TARGETS, channel, size)
    tuned = get_peft_model(model, RowSFTConfig(target_modules=TARGETS, channel=channel, **ids, **settings))
    shake(tuned, scale=0.05)
    return tuned, {name: tensor.to(CUDA) for name, tensor in causal_batch().items()}


def relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())


@pytest.mark.parametrize("channel", CHANNELS)
def test_loss_and_gradients_are_the_dense_models(channel):
    tuned, batch = tuned_llama(channel)
    dense = tiny_llama(torch.bfloat16, **WIDE).float().to(CUDA)
    for name, layer in row_layers(tuned).items():
        add_update(dense.get_submodule(name), layer)
    loss, exact = tuned(**batch).loss, dense(**batch).loss
    loss.backward()
    exact.backward()
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)
    for name, layer in row_layers(tuned).items():
        full = out_rows(dense.get_submodule(name), dense.get_submodule(name).weight.grad)
        rows, columns = layer_ids(layer)
        if "default" in layer.row_sft_delta:
            assert relative(layer.row_sft_delta["default"].grad, full[rows]) < 0.05, name
        if "default" in layer.row_sft_column_delta:
            expected = full[others_of(rows, len(full))][:, columns]
            assert relative(layer.row_sft_column_delta["default"].grad, expected) < 0.05, name


def test_training_lowers_the_loss_and_leaves_the_base_bit_for_bit():
    tuned, batch = tuned_llama()
    bases = {name: layer.get_base_layer().weight.clone() for name, layer in row_layers(tuned).items()}
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-2, fused=True)
    losses = []
    for _ in range(5):
        loss = tuned(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, layer in row_layers(tuned).items():
        assert torch.equal(layer.get_base_layer().weight, bases[name]), name


def test_the_exported_lora_adapter_computes_the_same(tmp_path):
    tuned, batch = tuned_llama()
    with torch.no_grad():
        rows = tuned.eval()(**batch).logits
    tensors, config = active_adapter(tuned)
    base = tiny_llama(torch.bfloat16, **WIDE)
    convert({name: tensor.cpu() for name, tensor in tensors.items()}, base).write(tmp_path, config)
    lora = PeftModel.from_pretrained(copy.deepcopy(base).to(CUDA), tmp_path).eval()
    with torch.no_grad():
        assert relative(lora(**batch).logits, rows) < 0.02


def test_merging_and_unmerging_give_the_base_back():
    tuned, _ = tuned_llama()
    before = {name: layer.get_base_layer().weight.clone() for name, layer in row_layers(tuned).items()}
    tuned.merge_adapter()
    assert any(
        not torch.equal(layer.get_base_layer().weight, before[name]) for name, layer in row_layers(tuned).items()
    )
    tuned.unmerge_adapter()
    for name, layer in row_layers(tuned).items():
        assert torch.equal(layer.get_base_layer().weight, before[name]), name
