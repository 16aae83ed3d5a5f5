"""Whoever reads, averages, copies or shares parameters sees the frozen base and the adapter's values apart."""

import copy
import io
import pickle

import pytest
import torch
from dense import base_is, dense_model, loss_on, start, values
from rows import CASES, CHANNELS, add_update, family, logits, row_layers, shake, train
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

cases = pytest.mark.parametrize(("name", "channel"), CASES)
channels = pytest.mark.parametrize("channel", CHANNELS)
CLOSE = {"rtol": 1e-9, "atol": 1e-11}
DECAY = 0.75


def base_in(state: dict, plain) -> bool:
    """Whether a state dict of the adapted model has the plain model's tensors, bit for bit."""
    expected = plain.state_dict()
    base = {
        key.removeprefix("module.").removeprefix("base_model.model.").replace(".base_layer", ""): value
        for key, value in state.items()
        if "row_sft_" not in key and not key.endswith("n_averaged")
    }
    assert base.keys() == expected.keys()
    return all(torch.equal(base[key], expected[key]) for key in expected)


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("evaluated", [False, True])
@cases
def test_an_averaged_model_averages_the_values_alone(name, channel, evaluated, ema):
    case = start(name, channel)
    optimizer = torch.optim.SGD(values(case.tuned).values(), lr=0.5)
    averaged = AveragedModel(case.tuned, multi_avg_fn=get_ema_multi_avg_fn(DECAY) if ema else None)
    by_hand, losses = {}, []
    for step in range(4):
        losses.append(case.tuned(**case.batch).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
        averaged.update_parameters(case.tuned)
        weight = 1 - DECAY if ema else 1 / (step + 1)
        for key, value in values(case.tuned).items():
            now = value.detach().clone()
            by_hand[key] = now if step == 0 else (1 - weight) * by_hand[key] + weight * now
        if evaluated:
            logits(averaged, case.batch)
            logits(case.tuned, case.batch)
    assert base_is(averaged.module, case.plain)
    assert base_in(averaged.state_dict(), case.plain)
    twin = copy.deepcopy(case.tuned)
    with torch.no_grad():
        for key, value in values(twin).items():
            value.copy_(by_hand[key])
    torch.testing.assert_close(logits(averaged, case.batch), logits(dense_model(case.plain, twin), case.batch), **CLOSE)
    assert base_is(averaged.module, case.plain)
    case.check_healthy()


@pytest.mark.parametrize("then", ["evaluation", "training step", "abandoned graph"])
@cases
def test_a_state_dict_taken_earlier_is_still_the_base(name, channel, then):
    """A state dict shares its storage with the model; it is often written to disk a good while later."""
    case = start(name, channel)
    state = case.tuned.state_dict()
    if then == "evaluation":
        logits(case.tuned, case.batch)
    elif then == "training step":
        case.tuned(**case.batch).loss.backward()
    else:
        abandoned = case.tuned(**case.batch).loss
        del abandoned
    torch.save(state, buffer := io.BytesIO())
    buffer.seek(0)
    assert base_in(torch.load(buffer), case.plain)


@cases
def test_a_state_dict_taken_while_a_graph_waits(name, channel):
    case = start(name, channel)
    expected = case.gradients(loss_on(case.batch))
    loss = case.tuned(**case.batch).loss
    state = {key: value.clone() for key, value in case.tuned.state_dict().items()}
    assert base_in(state, case.plain)
    loss.backward()
    case.check_gradients(expected)
    case.check_healthy()
    twin = start(name, channel)
    shake(twin.tuned, seed=11)
    twin.tuned.load_state_dict(state)
    torch.testing.assert_close(logits(twin.tuned, case.batch), case.logits(), **CLOSE)
    twin.check_healthy()


def saved_and_loaded(model):
    torch.save(model, buffer := io.BytesIO())
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved_and_loaded,
}


@pytest.mark.parametrize("how", COPIES)
@cases
def test_a_copy_made_while_a_graph_waits(name, channel, how):
    case = start(name, channel)
    expected = case.gradients(loss_on(case.batch))
    loss = case.tuned(**case.batch).loss
    twin = COPIES[how](case.tuned)
    assert base_is(twin, case.plain)
    torch.testing.assert_close(logits(twin, case.batch), case.logits(), **CLOSE)
    assert base_is(twin, case.plain)
    loss.backward()
    case.check_gradients(expected)
    assert case.is_clean()
    shake(twin, seed=11)
    train(twin, case.batch, steps=1)
    assert base_is(twin, case.plain)
    case.check_healthy()


def through_data(source, target):
    for mine, theirs in zip(target.parameters(), source.parameters(), strict=True):
        mine.data.copy_(theirs.data)


def through_foreach(source, target):
    with torch.no_grad():
        torch._foreach_copy_(list(target.parameters()), list(source.parameters()))


def through_a_vector(source, target):
    vector_to_parameters(parameters_to_vector(source.parameters()).detach().clone(), target.parameters())


TRANSFERS = {
    "data.copy_": through_data,
    "load_state_dict": lambda source, target: target.load_state_dict(source.state_dict()),
    "_foreach_copy_": through_foreach,
    "vector_to_parameters": through_a_vector,
}


@pytest.mark.parametrize("base", ["same base", "another base"])
@pytest.mark.parametrize("used", ["fresh target", "target that has run"])
@pytest.mark.parametrize("how", TRANSFERS)
@channels
def test_parameters_copied_to_another_model(channel, how, used, base):
    """Both have run before; the target's layers may still hold what they needed for that."""
    source, target = start(channel=channel), start(channel=channel)
    if base == "another base":
        with torch.no_grad():
            for name, parameter in target.tuned.named_parameters():
                if "row_sft_" not in name:
                    parameter.mul_(1.5)
    shake(target.tuned, seed=11)
    train(source.tuned, source.batch, steps=2)
    logits(source.tuned, source.batch)
    if used == "target that has run":
        logits(target.tuned, source.batch)
        train(target.tuned, source.batch, steps=1)
        logits(target.tuned, source.batch)
    TRANSFERS[how](source.tuned, target.tuned)
    torch.testing.assert_close(logits(target.tuned, source.batch), source.logits(), **CLOSE)
    target.check_healthy()
    source.check_healthy()


@pytest.mark.parametrize("waits", [False, True])
@cases
def test_a_functional_call_with_other_values(name, channel, waits):
    case = start(name, channel)
    mine = case.gradients(loss_on(case.batch))
    loss = case.tuned(**case.batch).loss if waits else None
    other = start(name, channel)
    shake(other.tuned, seed=11)
    expected = other.gradients(loss_on(case.batch))
    names = parameter_names(case.tuned)
    theirs = {names[key]: value.detach().clone().requires_grad_() for key, value in values(other.tuned).items()}
    output = functional_call(case.tuned, theirs, kwargs=case.batch)
    torch.testing.assert_close(output.logits, other.logits(), **CLOSE)
    gradients = torch.autograd.grad(output.loss, list(theirs.values()))
    for gradient, reference in zip(gradients, expected.values(), strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-9, atol=1e-13)
    with torch.no_grad():
        torch.testing.assert_close(
            functional_call(case.tuned, theirs, kwargs=case.batch).logits, other.logits(), **CLOSE
        )
    if waits:
        loss.backward()
        case.check_gradients(mine)
    case.check_healthy()


@pytest.mark.parametrize("how", ["detached", "cloned"])
@cases
def test_a_functional_call_with_the_models_own_parameters(name, channel, how):
    case = start(name, channel)
    parameters = {key: value.detach() for key, value in case.tuned.named_parameters()}
    if how == "cloned":
        parameters = {key: value.clone() for key, value in parameters.items()}
    trained = {key: value.requires_grad_() for key, value in parameters.items() if "row_sft_" in key}
    expected = case.gradients(loss_on(case.batch))
    output = functional_call(case.tuned, parameters, kwargs=case.batch)
    torch.testing.assert_close(output.logits, case.logits(), **CLOSE)
    names = parameter_names(case.tuned)
    for key, gradient in zip(trained, torch.autograd.grad(output.loss, list(trained.values())), strict=True):
        reference = next(value for value_key, value in expected.items() if names[value_key] == key)
        torch.testing.assert_close(gradient, reference, rtol=1e-9, atol=1e-13)
    del output
    assert all(torch.equal(parameters[key], value) for key, value in case.tuned.named_parameters())
    case.check_healthy()


@cases
def test_functional_gradients_of_the_values(name, channel):
    """torch.func.grad, as PEFT's LoRA allows it."""
    case = start(name, channel)
    names = parameter_names(case.tuned)
    given = {names[key]: value.detach().clone() for key, value in values(case.tuned).items()}
    gradients = torch.func.grad(lambda each: functional_call(case.tuned, each, kwargs=case.batch).loss)(given)
    for key, reference in case.gradients(loss_on(case.batch)).items():
        torch.testing.assert_close(gradients[names[key]], reference, rtol=1e-9, atol=1e-13)
    case.check_healthy()


def parameter_names(tuned) -> dict[tuple, str]:
    """(layer, kind, adapter) -> the parameter's full name."""
    by_identity = {id(parameter): name for name, parameter in tuned.named_parameters()}
    return {key: by_identity[id(value)] for key, value in values(tuned).items()}


ORDERS = {
    "one after the other": "Fa Ba Fb Bb Ea Eb",
    "interleaved": "Fa Fb Ba Bb",
    "interleaved, the second first": "Fa Fb Bb Ba",
    "evaluation while the other waits": "Fa Eb Ba Eb Ea",
    "both, and evaluation of both": "Fa Eb Fb Ea Ba Eb Ea Bb",
    "abandoned": "Fa Fb Da Eb Bb Fa Db Ea Ba",
}


@pytest.mark.parametrize("order", ORDERS)
@channels
def test_two_models_on_one_base(channel, order):
    """E: evaluation. F: forward. B: backward. D: the waiting graph is dropped."""
    a = start(channel=channel)
    frozen = {id(value): value for name, value in a.tuned.named_parameters() if "row_sft_" not in name}
    b = copy.copy(a)
    b.tuned = copy.deepcopy(a.tuned, frozen)
    assert next(b.tuned.base_model.model.parameters()) is next(a.tuned.base_model.model.parameters())
    shake(b.tuned, seed=11)
    models = {"a": a, "b": b}
    expected = {key: case.gradients(loss_on(case.batch)) for key, case in models.items()}
    losses = {}
    for action, key in map(tuple, ORDERS[order].split()):
        case = models[key]
        if action == "E":
            case.check_logits()
        elif action == "F":
            losses[key] = case.tuned(**case.batch).loss
        elif action == "B":
            losses[key].backward()
            case.check_gradients(expected[key])
        else:
            losses.pop(key, None)
    losses.clear()
    for case in models.values():
        case.check_healthy()


@pytest.mark.parametrize("graph", ["none", "waits"])
@channels
def test_moving_to_another_dtype_and_back(channel, graph):
    case = start(channel=channel, dtype=torch.float32)
    loss = case.tuned(**case.batch).loss if graph == "waits" else None
    case.tuned.double()
    del loss
    case.plain.double()
    case.check_healthy()
    case.tuned.float()
    assert base_is(case.tuned, family("llama")[0])


def test_one_base_weight_read_in_the_middle_of_an_epoch():
    """What a checkpointing callback sees that reads parameters one by one, between two steps."""
    case = start("bert", "both")
    train(case.tuned, case.batch, steps=2)
    for layer_name, layer in row_layers(case.tuned).items():
        plain = copy.deepcopy(case.plain.get_submodule(layer_name))
        assert torch.equal(layer.weight, plain.weight)
        add_update(plain, layer)
        assert not torch.equal(layer.weight, plain.weight)
