"""Forward and backward of every channel against a plain model's own gradients."""

import copy

import pytest
import torch
from dense import dense_gradients, dense_model, values
from peft import get_peft_model
from rows import (
    CHANNELS,
    FAMILIES,
    adapt,
    chosen_entries,
    family,
    layer_ids,
    logits,
    out_rows,
    row_layers,
    same,
    shake,
    train,
    weights,
)

from rowsft import RowSFTConfig

families = pytest.mark.parametrize("name", FAMILIES)
channels = pytest.mark.parametrize("channel", CHANNELS)


def compare_gradients(name, tuned, batch):
    """Every value's gradient equals the same entries of the dense model's full gradient."""
    dense = dense_model(family(name, torch.float64)[0], tuned).train(tuned.training)
    dense_loss, loss = dense(**batch).loss, tuned(**batch).loss
    torch.testing.assert_close(loss, dense_loss, rtol=1e-13, atol=0)
    dense_loss.backward()
    loss.backward()
    expected, trained = dense_gradients(dense, tuned), values(tuned)
    assert len(trained) == len([p for p in tuned.parameters() if p.requires_grad])
    for key, parameter in trained.items():
        assert expected[key].abs().max() > 0
        torch.testing.assert_close(parameter.grad, expected[key], rtol=1e-10, atol=1e-14)


def with_gradient(name):
    """Parameter name -> where the plain model's loss has a gradient, by a backward pass in 64 bit.

    A key's bias has none: it adds the same to all scores of a query. A 32-bit kernel leaves 0 or a rounding error
    there, so that it depends on the processor whether an optimizer moves it.
    """
    model, batch, _ = family(name, torch.float64)
    model.train()(**batch).loss.backward()
    grads = {key: parameter.grad for key, parameter in model.named_parameters()}
    # Rounding is 1e-16 of what is summed; the smallest true ones are 1e-10 of the largest.
    least = 1e-13 * max(grad.abs().max() for grad in grads.values())
    return {key: grad.abs() > least for key, grad in grads.items()}


@channels
@families
def test_step_zero_is_the_base_model_bit_for_bit(name, channel):
    model, batch, targets = family(name)
    before = logits(model, batch)
    tuned = adapt(model, targets, channel=channel)
    assert torch.equal(logits(tuned, batch), before)
    assert torch.equal(tuned.train()(**batch).logits, before)


@channels
@families
def test_gradients_are_entries_of_the_full_gradient(name, channel):
    model, batch, targets = family(name, torch.float64)
    tuned = adapt(model, targets, channel=channel)
    shake(tuned)
    compare_gradients(name, tuned, batch)


@pytest.mark.parametrize("reentrant", [True, False])
@channels
@families
def test_gradients_under_checkpointing(name, channel, reentrant):
    model, batch, targets = family(name, torch.float64)
    tuned = adapt(model, targets, channel=channel).train()
    tuned.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    tuned.enable_input_require_grads()
    assert model.is_gradient_checkpointing
    shake(tuned)
    compare_gradients(name, tuned, batch)


@channels
def test_gradient_flows_to_inputs_through_the_written_weight(channel):
    model, batch, targets = family("llama", torch.float64)
    tuned = adapt(model, targets, channel=channel)
    shake(tuned)
    dense = dense_model(family("llama", torch.float64)[0], tuned)
    grads = []
    for each in (tuned, dense):
        embeds = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
        each(inputs_embeds=embeds, labels=batch["labels"]).loss.backward()
        grads.append(embeds.grad)
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-14)


@channels
@families
def test_training_equals_dense_training_of_the_same_entries(name, channel):
    """Three SGD steps give the logits of a dense model whose other gradients are masked by hand."""
    model, batch, targets = family(name, torch.float64)
    dense = copy.deepcopy(model)
    tuned = adapt(model, targets, channel=channel)
    chosen = {}
    for parameter in dense.parameters():
        parameter.requires_grad_(False)
    for key, wrapped in row_layers(tuned).items():
        layer = dense.get_submodule(key)
        chosen[layer.weight.requires_grad_()] = out_rows(layer, chosen_entries(wrapped).to(torch.float64))
        if layer.bias is not None:
            chosen[layer.bias.requires_grad_()] = torch.zeros_like(layer.bias).index_fill_(
                0, torch.tensor(layer_ids(wrapped)[0], dtype=torch.int64), 1
            )
    sgd = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        tuned(**batch).loss.backward()
        sgd.step()
        sgd.zero_grad()
        for tensor, grad in zip(chosen, torch.autograd.grad(dense(**batch).loss, list(chosen)), strict=True):
            tensor.data -= 0.1 * grad * chosen[tensor]
    torch.testing.assert_close(logits(tuned, batch), logits(dense, batch), rtol=1e-11, atol=1e-13)


@channels
@families
def test_exactly_the_chosen_entries_change(name, channel):
    model, batch, targets = family(name)
    before = weights(model)
    tuned = adapt(model, targets, channel=channel).train()
    layers = row_layers(tuned)
    expected = {
        f"{key}.weight": out_rows(layer.get_base_layer(), chosen_entries(layer)) for key, layer in layers.items()
    }
    for key, layer in layers.items():
        if f"{key}.bias" in before and layer_ids(layer)[0]:
            expected[f"{key}.bias"] = torch.zeros(layer.out_features, dtype=torch.bool)
            expected[f"{key}.bias"][layer_ids(layer)[0]] = True
    assert any("bias" in key for key in expected) == (name != "llama" and channel != "columns")
    train(tuned, batch)
    after = tuned.merge_and_unload().state_dict()
    changed = {key: before[key] != after[key] for key in before}
    assert {key for key in changed if changed[key].any()} <= expected.keys()
    alive = with_gradient(name)
    for key, mask in expected.items():
        assert not (changed[key] & ~mask).any(), key
        assert changed[key][mask & alive[key]].all(), key
        assert alive[key].all() or key.endswith(("key.bias", "c_attn.bias")), key


def test_train_bias_false_leaves_biases_alone():
    model, batch, targets = family("bert")
    before = weights(model)
    tuned = adapt(model, targets, train_bias=False).train()
    train(tuned, batch)
    after = tuned.merge_and_unload().state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before if key.endswith(".bias"))


@channels
def test_accumulated_micro_batches_equal_the_big_batch(channel):
    model, batch, targets = family("bert", torch.float64)
    tuned = adapt(model, targets, channel=channel)
    shake(tuned)
    parameters = [p for p in tuned.parameters() if p.requires_grad]
    whole = torch.autograd.grad(tuned(**batch).loss, parameters)
    for part in range(4):
        (tuned(**{key: value[part : part + 1] for key, value in batch.items()}).loss / 4).backward()
    for parameter, expected in zip(parameters, whole, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-9, atol=1e-14)


@channels
@pytest.mark.parametrize("variant", [{}, {"foreach": True}, {"fused": True}])
def test_every_optimizer_step_reaches_the_forward(variant, channel):
    model, batch, targets = family("llama")
    tuned = adapt(model, targets, channel=channel)
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-2, **variant)
    losses = []
    for _ in range(4):
        loss = tuned(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert len(set(losses)) == 4


def test_an_optimizer_that_writes_through_data_is_noticed():
    model, batch, targets = family("llama")
    tuned = adapt(model, targets)
    loss = tuned(**batch).loss
    loss.backward()
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data.add_(parameter.grad, alpha=-0.5)
    after = tuned(**batch).loss
    assert after < loss
    merged = tuned.merge_and_unload()
    assert torch.equal(merged(**batch).loss, after)


def test_weights_are_written_once_a_step_and_not_in_evaluation():
    model, batch, targets = family("llama")
    tuned = adapt(model, targets)
    weight = model.model.layers[0].self_attn.q_proj.base_layer.weight
    logits(tuned, batch)
    version = weight._version
    logits(tuned, batch)
    tuned(**batch)
    assert weight._version == version


def test_two_forwards_before_their_backwards():
    """Rows are rewritten after a backward; a graph built before it must still run, with the right gradient."""
    model, batch, targets = family("llama", torch.float64)
    tuned = adapt(model, targets)
    shake(tuned)
    parameters = [p for p in tuned.parameters() if p.requires_grad]
    expected = torch.autograd.grad(tuned(**batch).loss, parameters)
    first, second = tuned(**batch).loss, tuned(**batch).loss
    first.backward()
    logits(tuned, batch)
    tuned.zero_grad()
    second.backward()
    for parameter, grad in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-12, atol=1e-16)


def test_reference_logits_between_forward_and_backward():
    """As in preference tuning: the base model runs between the policy's forward and its backward."""
    model, batch, targets = family("llama", torch.float64)
    base = logits(model, batch)
    tuned = adapt(model, targets)
    shake(tuned)
    parameters = [p for p in tuned.parameters() if p.requires_grad]
    expected = torch.autograd.grad(tuned(**batch).loss, parameters)
    loss = tuned(**batch).loss
    with tuned.disable_adapter():
        assert torch.equal(logits(tuned, batch), base)
    loss.backward()
    for parameter, grad in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-12, atol=1e-16)


def test_in_place_operation_on_the_output():
    layer = torch.nn.Sequential(torch.nn.Linear(6, 5))
    tuned = get_peft_model(layer, RowSFTConfig(target_modules=["0"], row_ids={"0": [1, 4]}))
    x = torch.randn(3, 6)
    y = tuned(x)
    y.clamp_(-0.1, 0.1)
    (y**2).sum().backward()
    linear = layer[0].base_layer
    out = x @ linear.weight.detach().t() + linear.bias.detach()
    grad = torch.where(out.abs() <= 0.1, 2 * out, 0)
    torch.testing.assert_close(layer[0].row_sft_delta["default"].grad, (grad.t() @ x)[[1, 4]])


def test_a_layer_called_twice_adds_up_its_gradients():
    linear = torch.nn.Linear(4, 4, dtype=torch.float64)
    weight, bias = linear.weight.detach().clone().requires_grad_(), linear.bias.detach().clone()
    tuned = get_peft_model(torch.nn.Sequential(linear), RowSFTConfig(target_modules=["0"], row_ids={"0": [2, 0]}))
    x = torch.randn(3, 4, dtype=torch.float64)
    tuned(tuned(x).tanh()).square().sum().backward()
    first = torch.nn.functional.linear(x, weight, bias).tanh()
    torch.nn.functional.linear(first, weight, bias).square().sum().backward()
    torch.testing.assert_close(tuned.base_model.model[0].row_sft_delta["default"].grad, weight.grad[[2, 0]])


def test_second_derivatives_are_refused():
    model, batch, targets = family("llama")
    tuned = adapt(model, targets)
    delta = next(p for p in tuned.parameters() if p.requires_grad)
    (grad,) = torch.autograd.grad(tuned(**batch).loss, delta, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@channels
def test_state_dict_in_mid_training_is_pristine(channel):
    model, batch, targets = family("llama")
    before = weights(model)
    tuned = adapt(model, targets, channel=channel)
    train(tuned, batch)
    logits(tuned, batch)
    state = weights(tuned)
    base = {
        key.removeprefix("base_model.model.").replace(".base_layer", ""): value
        for key, value in state.items()
        if "row_sft_" not in key
    }
    assert same(base, before)


# Coupled units are chosen by rowsft.attach.
@pytest.mark.parametrize("channel", [channel for channel in CHANNELS if channel != "neurons"])
def test_weights_that_are_not_initialised_change_the_model(channel):
    plain, batch, _ = family("llama", torch.float32)
    base = plain(**batch).logits
    ids = {"init_weights": False, "target_modules": ["q_proj", "down_proj"]}
    tuned = get_peft_model(plain, RowSFTConfig(rows=4, channel=channel, importance="l2", **ids))
    assert not torch.allclose(tuned(**batch).logits, base, atol=1e-2)
    with tuned.disable_adapter():
        assert torch.equal(tuned(**batch).logits, base)
