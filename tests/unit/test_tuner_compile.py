"""torch.compile: no graph break, the same gradients, and values written by the optimizer reach the graph."""

import copy
import subprocess
import sys

import pytest
import torch
from rows import adapt, logits, shake
from tiny import causal_batch, tiny_llama

TARGETS = ["q_proj", "o_proj", "up_proj", "down_proj"]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def small(channel, **settings):
    return adapt(tiny_llama(num_hidden_layers=1), TARGETS, channel=channel, **settings).train()


def compare_steps(compiled, tuned, twin, batch, steps=3, **tolerance):
    optimizers = [
        torch.optim.AdamW([p for p in each.parameters() if p.requires_grad], lr=1e-2) for each in (tuned, twin)
    ]
    losses = []
    for _ in range(steps):
        loss, expected = compiled(**batch).loss, twin(**batch).loss
        torch.testing.assert_close(loss, expected, **tolerance)
        loss.backward()
        expected.backward()
        for parameter, reference in zip(tuned.parameters(), twin.parameters(), strict=True):
            if reference.requires_grad:
                torch.testing.assert_close(parameter.grad, reference.grad, **tolerance)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert len(set(losses)) == steps


@pytest.mark.parametrize("channel", ["rows", "both"])
def test_steps_of_the_whole_graph_equal_uncompiled_ones(channel):
    batch = causal_batch()
    tuned = small(channel)
    twin = copy.deepcopy(tuned)
    compare_steps(torch.compile(tuned, backend="aot_eager", fullgraph=True), tuned, twin, batch)


@pytest.mark.parametrize("channel", ["rows", "both"])
def test_steps_under_autocast_equal_uncompiled_ones(channel):
    tuned = small(channel)
    twin = copy.deepcopy(tuned)
    compiled = torch.compile(tuned, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        # torch 2.8 rounds some sums to bfloat16 once more or less when it compiles.
        compare_steps(compiled, tuned, twin, causal_batch(), rtol=1.6e-2, atol=1e-3)


def test_compiled_and_uncompiled_calls_alternate():
    batch = causal_batch()
    tuned = small("columns")
    compiled = torch.compile(tuned, backend="aot_eager", fullgraph=True)
    base = logits(tiny_llama(num_hidden_layers=1), batch)
    compiled(**batch).loss.backward()
    shake(tuned)
    expected = logits(copy.deepcopy(tuned), batch)
    torch.testing.assert_close(logits(compiled, batch), expected)
    with tuned.disable_adapter():
        assert torch.equal(logits(tuned, batch), base)
    torch.testing.assert_close(logits(compiled, batch), expected)
    copied = copy.deepcopy(tuned)
    torch.testing.assert_close(logits(torch.compile(copied, backend="aot_eager", fullgraph=True), batch), expected)
    assert torch.equal(logits(tuned.unload(), batch), base)


class Logits(torch.nn.Module):
    """A model as torch.export takes it: a tensor in, a tensor out."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        return self.model(input_ids=ids, use_cache=False).logits


ELSEWHERE = """
import sys
sys.modules["rowsft"] = None
import torch
program, saved = sys.argv[1:]
ids, expected = torch.load(saved)
torch.testing.assert_close(torch.export.load(program).module()(ids), expected)
"""


@pytest.mark.parametrize("channel", ["rows", "both"])
def test_an_exported_program_runs_in_a_process_of_its_own(channel, tmp_path):
    tuned = small(channel).eval()
    shake(tuned)
    ids = causal_batch()["input_ids"]
    with torch.no_grad():
        torch.save((ids, Logits(tuned)(ids)), tmp_path / "saved.pt")
    torch.export.save(torch.export.export(Logits(tuned), (ids,)), tmp_path / "program.pt2")
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, tmp_path / "program.pt2", tmp_path / "saved.pt"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_compiled_operator_without_its_model_says_so():
    weight = torch.zeros(3, 4)
    with pytest.raises(RuntimeError, match="no row-SFT layer of this process with the weight"):
        torch.ops.rowsft.written_linear(torch.zeros(2, 4), weight, [], False, "default")
