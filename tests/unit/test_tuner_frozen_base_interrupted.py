"""Forwards and backwards that do not end, end elsewhere or run side by side leave the base weight as it was."""

import contextlib
import gc
import threading

import pytest
import torch
from dense import checkpoint, loss_on, ran, start, values
from rows import CHANNELS, logits, row_layers

from rowsft.errors import UserError

channels = pytest.mark.parametrize("channel", CHANNELS)
TIMEOUT_SECONDS = 2.0


class Interruption(Exception):
    """Raised by the hooks below."""


def raise_it(kind):
    def hook(*_):
        raise kind

    return hook


PLACES = {
    "before the base layer": lambda model, hook: base_of(model).register_forward_pre_hook(hook),
    "after the base layer": lambda model, hook: base_of(model).register_forward_hook(hook),
    "after the adapted layer": lambda model, hook: row_layers(model)[LAYER].register_forward_hook(hook),
    "in lm_head": lambda model, hook: model.get_output_embeddings().register_forward_hook(hook),
}
LAYER = "model.layers.1.mlp.down_proj"


def base_of(model):
    return row_layers(model)[LAYER].get_base_layer()


@pytest.mark.parametrize("kind", [Interruption, KeyboardInterrupt])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("place", PLACES)
@channels
def test_an_exception_in_forward(channel, place, grad, kind):
    case = start(channel=channel)
    handle = PLACES[place](case.tuned, raise_it(kind))
    with contextlib.suppress(kind), torch.set_grad_enabled(grad):
        case.tuned(**case.batch)
    gc.collect()
    assert case.is_clean()
    handle.remove()
    case.check_healthy()


@channels
def test_an_exception_without_a_graph_is_cleaned_up_at_once(channel):
    """The exception's frames are still alive when the base is read."""
    case = start(channel=channel)
    handle = PLACES["after the base layer"](case.tuned, raise_it(Interruption))
    with pytest.raises(Interruption), torch.no_grad():
        case.tuned(**case.batch)
    assert case.is_clean()
    handle.remove()


@pytest.mark.parametrize("reentrant", [None, True, False])
@channels
def test_an_exception_in_backward(channel, reentrant):
    case = start(channel=channel)
    if reentrant is not None:
        checkpoint(case.tuned, reentrant)

    def on_output(module, args, output):
        if output.requires_grad:
            output.register_hook(raise_it(Interruption))

    handle = PLACES["after the adapted layer"](case.tuned, on_output)
    loss = case.tuned(**case.batch).loss
    with contextlib.suppress(Interruption):
        loss.backward()
    del loss
    gc.collect()
    assert case.is_clean()
    handle.remove()
    case.check_healthy()


@pytest.mark.parametrize("reentrant", [None, True, False])
@channels
def test_an_optimizer_that_steps_inside_the_backward(channel, reentrant):
    """One value's step is taken as soon as its gradient is whole, while the backward goes on below it."""
    case = start(channel=channel)
    if reentrant is not None:
        checkpoint(case.tuned, reentrant)
    optimizers = {value: torch.optim.SGD([value], lr=0.1) for value in values(case.tuned).values()}

    def step(value):
        optimizers[value].step()
        optimizers[value].zero_grad()

    for value in optimizers:
        value.register_post_accumulate_grad_hook(step)
    for _ in range(3):
        expected = case.gradients(loss_on(case.batch))
        before = {key: value.detach().clone() for key, value in values(case.tuned).items()}
        loss = case.tuned(**case.batch).loss
        loss.backward()
        assert case.is_clean()
        for key, value in values(case.tuned).items():
            torch.testing.assert_close(value.detach(), before[key] - 0.1 * expected[key], rtol=1e-9, atol=1e-13)
    case.check_logits()


@pytest.mark.parametrize("inner", ["adapted", "disabled", "training step"])
@channels
def test_a_forward_inside_a_backward(channel, inner):
    """As a logging hook may do: the outer backward is half done, its weights still hold the values."""
    case = start(channel=channel)
    expected = case.gradients(loss_on(case.batch))
    inside = case.gradients(loss_on(case.other_batch))
    seen = []

    def run(_):
        if inner == "training step":
            parameters = list(values(case.tuned).values())
            with torch.enable_grad():
                seen.append(torch.autograd.grad(case.tuned(**case.other_batch).loss, parameters))
        elif inner == "disabled":
            with case.tuned.disable_adapter():
                seen.append(logits(case.tuned, case.batch))
        else:
            seen.append(logits(case.tuned, case.batch))

    handle = row_layers(case.tuned)[LAYER].register_forward_hook(lambda m, args, out: out.register_hook(run) and None)
    loss = case.tuned(**case.batch).loss
    handle.remove()
    loss.backward()
    assert case.is_clean()
    case.check_gradients(expected)
    if inner == "training step":
        for gradient, reference in zip(seen[0], inside.values(), strict=True):
            torch.testing.assert_close(gradient, reference, rtol=1e-9, atol=1e-13)
    else:
        reference = logits(case.plain, case.batch) if inner == "disabled" else case.logits()
        torch.testing.assert_close(seen[0], reference, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("graph", ["none", "waits"])
@pytest.mark.parametrize("channel", ["rows", "both"])
def test_two_threads_evaluate_one_model(channel, graph):
    """The slow thread stops inside the base layer, after the values were written, until the fast one is through it.

    Right outputs, or a UserError in the thread that comes second: never an output of half-restored weights.
    """
    case = start(channel=channel)
    expected = case.logits()
    gradients = case.gradients(loss_on(case.batch))
    loss = case.tuned(**case.batch).loss if graph == "waits" else None
    slow_inside, fast_done = threading.Event(), threading.Event()
    results = {}

    def pause(*_):
        if threading.current_thread().name == "slow":
            slow_inside.set()
            fast_done.wait(TIMEOUT_SECONDS)

    def work():
        name = threading.current_thread().name
        try:
            if name == "fast":
                slow_inside.wait(TIMEOUT_SECONDS)
            results[name] = logits(case.tuned, case.batch)
        except UserError as error:
            results[name] = error
        finally:
            if name == "fast":
                fast_done.set()

    handle = base_of(case.tuned).register_forward_pre_hook(pause)
    threads = [threading.Thread(target=work, name=name) for name in ("slow", "fast")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handle.remove()
    assert results.keys() == {"slow", "fast"}
    outputs = [result for result in results.values() if not isinstance(result, UserError)]
    assert outputs
    for output in outputs:
        torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-11)
    if loss is not None and ran(loss.backward):
        case.check_gradients(gradients)
    del loss
    case.check_healthy()


@pytest.mark.parametrize("channel", ["rows", "both"])
def test_many_threads_evaluate_one_model(channel):
    case = start(channel=channel)
    expected = case.logits()
    outputs, errors = [], []

    def work():
        for _ in range(10):
            try:
                outputs.append(logits(case.tuned, case.batch))
            except UserError as error:
                errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outputs) + len(errors) == 40
    assert outputs
    for output in outputs:
        torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-11)
    case.check_healthy()
