"""16-bit bases, autocast, and what is kept in 32 bit."""

import copy

import pytest
import torch
from peft import get_peft_model
from rows import (
    CHANNELS,
    FAMILIES,
    adapt,
    add_update,
    family,
    layer_ids,
    logits,
    random_ids,
    row_layers,
    shake,
)

from rowsft import RowSFTConfig

families = pytest.mark.parametrize("name", FAMILIES)
channels = pytest.mark.parametrize("channel", CHANNELS)


@channels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_base_has_thirty_two_bit_values(dtype, channel):
    model, batch, targets = family("llama", dtype)
    plain = copy.deepcopy(model).float()
    config = RowSFTConfig(target_modules=targets, channel=channel, **random_ids(model, targets, channel))
    tuned = get_peft_model(model, config)
    trainable = [p for p in tuned.parameters() if p.requires_grad]
    assert {p.dtype for p in trainable} == {torch.float32}
    # Steps far below the 16-bit resolution of the weights must still add up in the 32-bit master.
    for _ in range(3):
        tuned(**batch).loss.backward()
        torch.optim.SGD(trainable, lr=1e-3).step()
        tuned.zero_grad()
    assert {p.dtype for p in trainable} == {torch.float32}
    unmerged = logits(tuned, batch)
    # A graph waits, so the values are written.
    waiting = tuned(**batch)
    for name, layer in row_layers(tuned).items():
        add_update(plain.get_submodule(name), layer)
        assert torch.equal(layer.get_base_layer().weight, plain.get_submodule(name).weight.to(dtype))
    del waiting
    assert torch.equal(logits(tuned.merge_and_unload(), batch), unmerged)


@channels
def test_autocast_on_a_thirty_two_bit_base(channel):
    model, batch, targets = family("llama")
    tuned = adapt(model, targets, channel=channel)
    shake(tuned)
    parameters = [p for p in tuned.parameters() if p.requires_grad]
    exact = torch.autograd.grad(tuned(**batch).loss, parameters)
    with torch.autocast("cpu", torch.bfloat16):
        loss = tuned(**batch).loss
    loss.backward()
    for parameter, grad in zip(parameters, exact, strict=True):
        assert parameter.grad.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(parameter.grad.flatten(), grad.flatten(), dim=0) > 0.99


@pytest.mark.parametrize("autocast", [True, False])
def test_updates_of_a_16_bit_base_are_32_bit_unless_asked_otherwise(autocast):
    plain, batch, _ = family("llama", torch.bfloat16)
    before = {key: value.clone() for key, value in plain.state_dict().items()}
    config = RowSFTConfig(rows=3, importance="l2", target_modules="all-linear")
    tuned = get_peft_model(plain, config, autocast_adapter_dtype=autocast)
    trained = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32 if autocast else torch.bfloat16}
    tuned(**batch).loss.backward()
    assert all(parameter.grad.dtype == parameter.dtype for parameter in trained)
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.5)
    waiting = tuned(**batch)
    assert waiting.loss.requires_grad
    for key, layer in row_layers(tuned).items():
        rows, _ = layer_ids(layer)
        expected = before[f"{key}.weight"].clone()
        expected[rows] = (expected[rows].float() + 0.5).bfloat16()
        assert torch.equal(layer.base_layer.weight, expected)
