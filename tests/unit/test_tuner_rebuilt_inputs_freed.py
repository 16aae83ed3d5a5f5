"""With rebuilt inputs nothing is held that would be gone without them, and whoever runs a graph again can."""

import gc
import subprocess
import sys

import pytest
import torch
from dense import values
from peaks import frozen, peak_bytes, warm_peak
from rebuilding import compare, gradients, makers, normed_layers, of_family, sources
from rows import FAMILIES, adapt, row_layers
from tiny import causal_batch
from torch.multiprocessing.reductions import StorageWeakRef

families = pytest.mark.parametrize("name", FAMILIES)
SHARING = "model.layers.1.self_attn."


def watched_inputs(model) -> dict[str, StorageWeakRef]:
    """Layer -> a weak reference to the storage of its last input."""
    seen = {}
    for name, layer in row_layers(model).items():
        layer.register_forward_pre_hook(
            lambda module, args, name=name: seen.update({name: StorageWeakRef(args[0].untyped_storage())})
        )
    return seen


@pytest.fixture(autouse=True)
def without_garbage_collection():
    """Reference counts alone must free everything: on a GPU memory cannot wait for the collector."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@families
def test_rebuilt_inputs_are_gone_between_forward_and_backward(name):
    """Attention saves its own output, and the layer's input is a view of that."""
    rebuilding, keeping, batch = of_family(name)
    saved_anyway = {
        layer for layer, made in makers(keeping, batch).items() if any("Attention" in each for each in made)
    }
    inputs = watched_inputs(rebuilding)
    loss = rebuilding(**batch).loss
    rebuilt, _ = sources(rebuilding)
    assert {layer for layer in rebuilt if inputs[layer].expired()} == rebuilt - saved_anyway
    loss.backward()
    assert all(each.expired() for each in inputs.values())

    inputs = watched_inputs(keeping)
    loss = keeping(**batch).loss
    assert not any(each.expired() for each in inputs.values())
    loss.backward()
    assert all(each.expired() for each in inputs.values())


@pytest.mark.parametrize("recompute", [True, False])
@families
def test_an_abandoned_graph_frees_its_inputs(name, recompute):
    rebuilding, keeping, batch = of_family(name)
    model = rebuilding if recompute else keeping
    inputs = watched_inputs(model)
    loss = model(**batch).loss
    del loss
    assert inputs.keys() == row_layers(model).keys()
    assert all(each.expired() for each in inputs.values())


def plain_step(model, batch):
    model(**batch).loss.backward()


def abandoned(model, batch):
    return model(**batch).loss and None


def of_one_value(model, batch):
    """q, k and v share an input; two of them never run, so they never give it back."""
    loss = model(**batch).loss
    torch.autograd.grad(loss, row_layers(model)[f"{SHARING}k_proj"].row_sft_delta["default"], retain_graph=True)


def retained_twice(model, batch):
    loss = model(**batch).loss
    loss.backward(retain_graph=True)
    loss.backward(retain_graph=True)


def part_then_all(model, batch):
    loss = model(**batch).loss
    torch.autograd.grad(loss, row_layers(model)[f"{SHARING}k_proj"].row_sft_delta["default"], retain_graph=True)
    loss.backward()


@pytest.mark.parametrize("step", [plain_step, abandoned, of_one_value, retained_twice, part_then_all])
def test_nothing_accumulates_over_twenty_steps(step):
    """The peak of new allocations over twenty steps is that of one, to the byte."""
    rebuilding, _, batch = of_family("llama")

    def steps(count):
        for _ in range(count):
            step(rebuilding, batch)
            rebuilding.zero_grad()

    steps(2)
    assert peak_bytes(lambda: steps(20)) == peak_bytes(lambda: steps(1))


def test_the_peak_of_a_step_of_rows_is_that_of_the_frozen_model():
    """And gradients, and at most one input at a time, with one temporary of its size for the making of it."""
    batch = causal_batch(4, 48)
    model, _, targets = frozen("llama")
    floor = warm_peak(model, batch)
    tuned = adapt(model, targets)
    trained = sum(p.nbytes for p in tuned.parameters() if p.requires_grad)
    largest = 4 * batch["input_ids"].numel() * max(layer.in_features for layer in row_layers(tuned).values())
    most = floor + trained + 2 * largest
    assert warm_peak(tuned, batch) <= most
    keeping = adapt(frozen("llama")[0], targets, recompute_inputs=False)
    assert warm_peak(keeping, batch) > most


@families
def test_a_retained_graph_runs_twice_more(name):
    rebuilding, keeping, batch = of_family(name)
    normed = normed_layers(keeping, batch)
    losses = [model(**batch).loss for model in (rebuilding, keeping)]
    for _ in range(3):
        found = []
        for model, loss in zip((rebuilding, keeping), losses, strict=True):
            loss.backward(retain_graph=True)
            found.append(gradients(model))
        compare(*found, normed)


@pytest.mark.parametrize("part", [("q_proj",), ("k_proj",), ("v_proj", "q_proj"), ("o_proj", "k_proj", "k_proj")])
def test_a_part_and_then_all(part):
    """Whoever shares an input with others may run first, alone, or twice."""
    rebuilding, keeping, batch = of_family("llama")
    losses = [model(**batch).loss for model in (rebuilding, keeping)]
    for name in part:
        found = [
            torch.autograd.grad(loss, row_layers(model)[SHARING + name].row_sft_delta["default"], retain_graph=True)[0]
            for model, loss in zip((rebuilding, keeping), losses, strict=True)
        ]
        assert torch.equal(*found)
    for retain in (True, False):
        found = []
        for model, loss in zip((rebuilding, keeping), losses, strict=True):
            loss.backward(retain_graph=retain)
            found.append(gradients(model))
        compare(*found, set())


def test_two_losses_of_one_graph():
    """Each runs its own part of the nodes that share an input."""
    rebuilding, keeping, batch = of_family("llama")
    found = []
    for model in (rebuilding, keeping):
        outputs = {}
        for name in ("q_proj", "k_proj", "v_proj"):
            row_layers(model)[SHARING + name].register_forward_hook(
                lambda module, args, output, name=name, outputs=outputs: outputs.update({name: output})
            )
        model(**batch)
        trained = values(model)
        parts = []
        for name, retain in (("k_proj", True), ("q_proj", True), ("v_proj", True), ("k_proj", False)):
            value = trained[SHARING + name, "row_sft_delta", "default"]
            parts += torch.autograd.grad(outputs[name].square().sum(), value, retain_graph=retain)
        found.append(parts)
    for rebuilt, kept in zip(*found, strict=True):
        assert torch.equal(rebuilt, kept)


DEEP = """
import torch
from peft import get_peft_model
from torch import nn
from torch.nn import functional
from rowsft import RowSFTConfig

config = RowSFTConfig(target_modules=["0"], row_ids={{"0": [1, 3]}}, recompute_inputs={recompute})
tuned = get_peft_model(nn.Sequential(nn.Linear(4, 4)), config)
scale = torch.full((4,), 0.9)

def deep(x):
    for _ in range(2000):
        x = tuned(scale * functional.silu(x))
    return x.sum()

z = torch.randn(2, 4, requires_grad=True)
loss = deep(z)
del loss
print("abandoned")
deep(z).backward()
print("backward")
loss = deep(z)
loss.backward(retain_graph=True)
del loss
print("retained")
"""


@pytest.mark.parametrize("recompute", [True, False])
def test_a_graph_of_two_thousand_calls_is_freed_without_a_crash(recompute):
    """In a process of its own: a destructor that calls itself 2,000 deep ends the process."""
    code = DEEP.format(recompute=recompute)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["abandoned", "backward", "retained"]
