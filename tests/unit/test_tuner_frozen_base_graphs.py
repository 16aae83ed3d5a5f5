"""Several graphs that wait for their backwards: each gets the gradients of its own forward, then the base is clean."""

import pytest
import torch
from dense import add_other, embedded, loss_on, ran, start, values
from rows import CASES, CHANNELS, logits
from torch.nn import functional

cases = pytest.mark.parametrize(("name", "channel"), CASES)
channels = pytest.mark.parametrize("channel", CHANNELS)
EXACT = {"rtol": 1e-9, "atol": 1e-13}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@cases
def test_two_graphs_in_either_order(name, channel, order):
    case = start(name, channel)
    batches = (case.batch, case.other_batch)
    expected = [case.gradients(loss_on(batch)) for batch in batches]
    losses = [case.tuned(**batch).loss for batch in batches]
    for each in order:
        losses[each].backward()
        case.check_gradients(expected[each])
    case.check_healthy()


@cases
def test_accumulated_micro_batches(name, channel):
    case = start(name, channel)
    batches = (case.batch, case.other_batch)
    expected = case.gradients(loss_on(*batches))
    for batch in batches:
        case.tuned(**batch).loss.backward()
        assert case.is_clean()
    case.check_gradients(expected)
    loss = loss_on(*batches)(case.tuned)
    loss.backward()
    assert case.is_clean()
    case.check_gradients(expected)


@pytest.mark.parametrize("dropped", [0, 1])
@channels
def test_one_of_two_graphs_is_abandoned(channel, dropped):
    case = start(channel=channel)
    batches = (case.batch, case.other_batch)
    expected = case.gradients(loss_on(batches[1 - dropped]))
    losses = [case.tuned(**batch).loss for batch in batches]
    del losses[dropped]
    losses[0].backward()
    assert case.is_clean()
    case.check_gradients(expected)
    case.check_healthy()


CHANGES = {
    "in place": lambda value, change: value.add_(change),
    "through data": lambda value, change: value.data.add_(change),
}


@pytest.mark.parametrize("between", ["nothing", "evaluation", "training step"])
@pytest.mark.parametrize("change", CHANGES)
@channels
def test_values_that_change_while_a_graph_waits(channel, change, between):
    """The gradient of the values that the forward saw, or an error; never a mixture."""
    case = start(channel=channel)
    old = case.gradients(loss_on(case.other_batch))
    first, second = case.tuned(**case.batch).loss, case.tuned(**case.other_batch).loss
    first.backward()
    case.tuned.zero_grad()
    with torch.no_grad():
        for value in values(case.tuned).values():
            CHANGES[change](value, 0.1 * torch.ones_like(value))
    if between == "evaluation":
        case.check_logits()
    elif between == "training step":
        expected = case.gradients(loss_on(case.batch))
        if ran(case.tuned(**case.batch).loss.backward):
            case.check_gradients(expected)
        case.tuned.zero_grad()
    if ran(second.backward):
        case.check_gradients(old)
    del first, second
    case.check_healthy()


@channels
def test_a_retained_graph_runs_again(channel):
    case = start(channel=channel)
    expected = case.gradients(loss_on(case.batch))
    batch = embedded(case.plain, case.batch)
    loss = case.tuned(**batch).loss
    gradients = []
    for _ in range(3):
        loss.backward(retain_graph=True)
        assert case.is_clean()
        case.check_gradients(expected)
        gradients.append(batch["inputs_embeds"].grad.clone())
        batch["inputs_embeds"].grad = None
        case.check_logits()
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])
    dense_batch = embedded(case.plain, case.batch)
    case.dense()(**dense_batch).loss.backward()
    torch.testing.assert_close(gradients[0], dense_batch["inputs_embeds"].grad, **EXACT)
    del loss
    case.check_healthy()


@channels
def test_a_retained_graph_after_the_values_changed(channel):
    case = start(channel=channel)
    expected = case.gradients(loss_on(case.batch))
    loss = case.tuned(**case.batch).loss
    loss.backward(retain_graph=True)
    case.tuned.zero_grad()
    with torch.no_grad():
        for value in values(case.tuned).values():
            value.mul_(3)
    if ran(loss.backward):
        case.check_gradients(expected)
    del loss
    case.check_healthy()


@pytest.mark.parametrize("which", ["first", "middle", "last", "inputs"])
@cases
def test_gradients_of_a_part_and_then_of_all(name, channel, which):
    case = start(name, channel)
    expected = case.gradients(loss_on(case.batch))
    batch = embedded(case.plain, case.batch)
    loss = case.tuned(**batch).loss
    if which == "inputs":
        (gradient,) = torch.autograd.grad(loss, batch["inputs_embeds"], retain_graph=True)
        dense_batch = embedded(case.plain, case.batch)
        (reference,) = torch.autograd.grad(case.dense()(**dense_batch).loss, dense_batch["inputs_embeds"])
    else:
        trained = values(case.tuned)
        key = list(trained)[{"first": 0, "middle": len(trained) // 2, "last": -1}[which]]
        (gradient,) = torch.autograd.grad(loss, trained[key], retain_graph=True)
        reference = expected[key]
    torch.testing.assert_close(gradient, reference, **EXACT)
    loss.backward()
    case.check_gradients(expected)
    del loss
    case.check_healthy()


@channels
def test_gradients_of_a_part_and_then_nothing(channel):
    case = start(channel=channel)
    trained = list(values(case.tuned).values())
    for value in (trained[0], trained[-1]):
        loss = case.tuned(**case.batch).loss
        torch.autograd.grad(loss, value)
        del loss
        case.check_healthy()


@pytest.mark.parametrize("order", [("adapted", "disabled"), ("disabled", "adapted")])
@pytest.mark.parametrize("backwards", ["as recorded", "the other way round"])
@cases
def test_a_disabled_graph_and_an_adapted_one(name, channel, order, backwards):
    case = start(name, channel)
    expected = case.gradients(loss_on(case.batch))
    references, batches, losses = {}, {}, {}
    for kind, model in (("adapted", case.dense()), ("disabled", case.plain)):
        batch = embedded(case.plain, case.batch)
        (references[kind],) = torch.autograd.grad(model(**batch).loss, batch["inputs_embeds"])
    for kind in order:
        batches[kind] = embedded(case.plain, case.batch)
        if kind == "adapted":
            losses[kind] = case.tuned(**batches[kind]).loss
        else:
            with case.tuned.disable_adapter():
                losses[kind] = case.tuned(**batches[kind]).loss
    for kind in order if backwards == "as recorded" else order[::-1]:
        losses[kind].backward()
        torch.testing.assert_close(batches[kind]["inputs_embeds"].grad, references[kind], **EXACT)
    case.check_gradients(expected)
    case.check_healthy()


def preference_loss(policy, reference, chosen, rejected):
    """Of direct preference optimisation, with a model's loss in the place of its negative log-likelihood."""
    margins = [model(**rejected).loss - model(**chosen).loss for model in (policy, reference)]
    return -functional.logsigmoid(0.5 * (margins[0] - margins[1]))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("first", ["policy", "reference"])
@cases
def test_direct_preference_optimisation(name, channel, first, grad):
    """The reference is the same model with its adapter disabled; two separate models give the gradients."""
    case = start(name, channel)
    batches = [embedded(case.plain, batch) for batch in (case.batch, case.other_batch)]
    inputs = [batch["inputs_embeds"] for batch in batches]

    def reference(**batch):
        with torch.set_grad_enabled(grad), case.tuned.disable_adapter():
            return case.tuned(**batch)

    def two_models(policy):
        with torch.set_grad_enabled(grad):
            margin = case.plain(**batches[1]).loss - case.plain(**batches[0]).loss
        return -functional.logsigmoid(0.5 * (policy(**batches[1]).loss - policy(**batches[0]).loss - margin))

    expected = case.gradients(two_models)
    expected_inputs = [each.grad.clone() for each in inputs]
    for each in inputs:
        each.grad = None
    if first == "policy":
        loss = preference_loss(case.tuned, reference, *batches)
    else:
        margin = reference(**batches[1]).loss - reference(**batches[0]).loss
        policy = case.tuned(**batches[1]).loss - case.tuned(**batches[0]).loss
        loss = -functional.logsigmoid(0.5 * (policy - margin))
    loss.backward()
    assert case.is_clean()
    for each, gradient in zip(inputs, expected_inputs, strict=True):
        torch.testing.assert_close(each.grad, gradient, **EXACT)
    case.check_gradients(expected)


@cases
def test_two_adapters_active(name, channel):
    case = start(name, channel)
    add_other(case, channel)
    both = ["default", "other"]
    case.tuned.base_model.set_adapter(both)
    expected = case.gradients(loss_on(case.batch), both)
    loss = case.tuned(**case.batch).loss
    loss.backward()
    assert case.is_clean()
    case.check_gradients(expected)
    case.check_logits(adapters=both)
    assert case.is_clean()


@pytest.mark.parametrize("order", [("default", "other"), ("other", "default")])
@pytest.mark.parametrize("second", ["rows", "columns", "both", "neurons"])
@channels
def test_adapters_switched_while_a_graph_waits(channel, second, order):
    case = start(channel=channel)
    add_other(case, second)
    expected, losses = {}, {}
    for adapter in ("default", "other"):
        case.tuned.set_adapter(adapter)
        expected[adapter] = case.gradients(loss_on(case.batch), [adapter])
        losses[adapter] = case.tuned(**case.batch).loss
    for adapter in order:
        case.tuned.set_adapter(adapter)
        losses[adapter].backward()
        case.check_gradients(expected[adapter])
    assert case.is_clean()
    for adapter in order:
        case.tuned.set_adapter(adapter)
        case.check_logits(adapters=[adapter])
        assert case.is_clean()


@channels
def test_evaluation_while_a_graph_waits(channel):
    case = start(channel=channel)
    expected = case.gradients(loss_on(case.batch))
    loss = case.tuned(**case.batch).loss
    case.check_logits(case.other_batch)
    with case.tuned.disable_adapter():
        assert torch.equal(logits(case.tuned, case.batch), logits(case.plain, case.batch))
    with torch.inference_mode():
        case.tuned(**case.batch)
    loss.backward()
    assert case.is_clean()
    case.check_gradients(expected)


@pytest.mark.parametrize("backward", ["while merged", "after unmerging"])
@cases
def test_merging_while_a_graph_waits(name, channel, backward):
    case = start(name, channel)
    expected = case.gradients(loss_on(case.batch))
    loss = case.tuned(**case.batch).loss
    case.tuned.merge_adapter()
    torch.testing.assert_close(logits(case.tuned, case.batch), case.logits(), rtol=1e-9, atol=1e-11)
    if backward == "while merged" and ran(loss.backward):
        case.check_gradients(expected)
        torch.testing.assert_close(logits(case.tuned, case.batch), case.logits(), rtol=1e-9, atol=1e-11)
    case.tuned.unmerge_adapter()
    if backward == "after unmerging" and ran(loss.backward):
        case.check_gradients(expected)
    del loss
    case.check_healthy()
