"""The base weight is W0, bit for bit, whenever no forward runs and no graph waits for its backward."""

import pytest
import torch
from dense import checkpoint, embedded, loss_on, start, values
from rows import CHANNELS, FAMILIES, logits

families = pytest.mark.parametrize("name", FAMILIES)
channels = pytest.mark.parametrize("channel", CHANNELS)
reentrant = pytest.mark.parametrize("reentrant", [True, False])


@pytest.mark.parametrize("inputs_require_grad", [False, True])
@channels
@families
def test_after_a_backward_the_base_is_clean_while_the_loss_lives(name, channel, inputs_require_grad):
    case = start(name, channel)
    if inputs_require_grad:
        case.tuned.enable_input_require_grads()
    expected = case.gradients(loss_on(case.batch))
    loss = case.tuned(**case.batch).loss
    loss.backward()
    assert case.is_clean()
    case.check_gradients(expected)


@channels
@families
def test_losses_that_are_kept_do_not_keep_the_values_in_the_base(name, channel):
    case = start(name, channel)
    optimizer = torch.optim.SGD(values(case.tuned).values(), lr=0.1)
    losses = []
    for _ in range(3):
        expected = case.gradients(loss_on(case.batch))
        losses.append(case.tuned(**case.batch).loss)
        losses[-1].backward()
        assert case.is_clean()
        optimizer.step()
        case.check_gradients(expected)
    assert len({loss.item() for loss in losses}) == 3
    case.check_healthy()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@channels
@families
def test_after_a_forward_without_a_graph(name, channel, mode):
    case = start(name, channel)
    with mode():
        outputs = case.tuned(**case.batch).logits
        assert case.is_clean()
        again = case.tuned.train()(**case.batch).logits
        assert case.is_clean()
    torch.testing.assert_close(outputs.clone(), case.logits(), rtol=1e-9, atol=1e-11)
    assert torch.equal(outputs, again)
    case.check_healthy()


@channels
@families
def test_after_an_abandoned_graph(name, channel):
    """Nothing but the reference count is needed, so no cycle may hold the graph."""
    case = start(name, channel)
    loss = case.tuned(**case.batch).loss
    del loss
    case.check_healthy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@channels
@families
def test_every_dtype_comes_back_bit_for_bit(name, channel, dtype):
    case = start(name, channel, dtype)
    for _ in range(2):
        case.tuned(**case.batch).loss.backward()
        assert case.is_clean()
    unmerged = logits(case.tuned, case.batch)
    assert case.is_clean()
    assert torch.equal(unmerged, logits(case.dense(), case.batch))
    case.tuned.merge_adapter()
    assert not case.is_clean()
    assert torch.equal(logits(case.tuned, case.batch), unmerged)
    case.tuned.unmerge_adapter()
    assert case.is_clean()
    assert torch.equal(logits(case.tuned, case.batch), unmerged)


@reentrant
@channels
@families
def test_under_checkpointing(name, channel, reentrant):
    case = start(name, channel)
    checkpoint(case.tuned, reentrant)
    expected = case.gradients(loss_on(case.batch))
    for _ in range(2):
        loss = case.tuned(**case.batch).loss
        loss.backward()
        assert case.is_clean()
        case.check_gradients(expected)
    abandoned = case.tuned(**case.batch).loss
    del abandoned
    case.check_healthy()


@channels
@families
def test_a_frozen_adapter_passes_the_gradient_to_the_inputs(name, channel):
    """As in prompt tuning or attribution: no value requires a gradient, the inputs do."""
    case = start(name, channel)
    case.tuned.requires_grad_(False)
    grads = []
    for model in (case.tuned, case.dense().requires_grad_(False)):
        batch = embedded(case.plain, case.batch)
        loss = model(**batch).loss
        loss.backward()
        grads.append(batch["inputs_embeds"].grad)
        assert case.is_clean()
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-13)
    abandoned = case.tuned(**embedded(case.plain, case.batch)).loss
    del abandoned
    assert case.is_clean()


@channels
@families
def test_the_disabled_adapter_is_the_base(name, channel):
    case = start(name, channel)
    with case.tuned.disable_adapter():
        assert torch.equal(logits(case.tuned, case.batch), logits(case.plain, case.batch))
        assert case.is_clean()
    case.check_healthy()


@pytest.mark.filterwarnings("ignore:.*attention mask.*")
@pytest.mark.parametrize("name", ["llama", "gpt2"])
@channels
def test_generation(name, channel):
    case = start(name, channel)
    prompt = {"input_ids": case.batch["input_ids"][:1, :5], "max_new_tokens": 8, "do_sample": False}
    with torch.no_grad():
        tokens = case.tuned.generate(**prompt)
    assert case.is_clean()
    assert torch.equal(tokens, case.dense().generate(**prompt))


@channels
def test_one_autocast_region_for_different_weights(channel):
    """Autocast may remember a cast weight until its region ends; the written one changes within it."""
    case = start(channel=channel, dtype=torch.float32)

    def states():
        yield logits(case.tuned, case.batch)
        with case.tuned.disable_adapter():
            yield logits(case.tuned, case.batch)
        with torch.no_grad():
            for value in values(case.tuned).values():
                value.mul_(2)
        yield logits(case.tuned, case.batch)
        with torch.no_grad():
            for value in values(case.tuned).values():
                value.div_(2)

    with torch.autocast("cpu", torch.bfloat16):
        together = list(states())
    apart = states()
    for output in together:
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(output, next(apart))
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(together[0], together[2])
    assert case.is_clean()


@pytest.mark.parametrize("channel", ["rows", "both"])
def test_compiled_calls(channel):
    torch._dynamo.reset()
    case = start(channel=channel, num_hidden_layers=1)
    compiled = torch.compile(case.tuned, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(logits(compiled, case.batch), case.logits())
    assert case.is_clean()
    expected = case.gradients(loss_on(case.batch))
    for _ in range(2):
        loss = compiled(**case.batch).loss
        loss.backward()
        assert case.is_clean()
        case.check_gradients(expected)
    abandoned = compiled(**case.batch).loss
    del abandoned
    case.check_healthy()
    torch._dynamo.reset()
