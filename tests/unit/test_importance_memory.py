"""Scoring stays below a training step that keeps its inputs, by bytes; and how layers are grouped for that."""

from functools import cache

import pytest
import torch
from scoring import CASES, close_axes, few_draws, layers_of, score_axes
from tiny import causal_batch, classification_batch, tiny_bert, tiny_llama

from rowsft.importance import Context
from rowsft.importance.grouping import Pass, groups_of, kept_bytes, kept_inputs
from rowsft.measure.memory import AllocationPeak
from rowsft.tuner import RowSFTConfig
from rowsft.tuner.attach import attach, score

METRICS = ["l1", "lift(rank=8)", "random", "taylor", "taylor_row", "grad2", "fisher", "taylor2", "wanda", "zo_taylor"]
WIDE = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 8}


def llama(num_hidden_layers=2):
    return tiny_llama(**WIDE, num_key_value_heads=4, num_hidden_layers=num_hidden_layers)


#: Where weights and activations are both visible: a way to build the model, and batches of equal length.
SHAPES = {
    "llama": (llama, [causal_batch(4, 32, seed=1), causal_batch(1, 32, seed=2)]),
    "deep llama": (lambda: llama(4), [causal_batch(4, 32, seed=1), causal_batch(1, 32, seed=2)]),
    "one sample a batch": (llama, [causal_batch(1, 63, seed=1), causal_batch(1, 63, seed=2)]),
    "bert": (lambda: tiny_bert(**WIDE), [classification_batch(4, 32, seed=1), classification_batch(1, 32, seed=2)]),
}
CASES_OF_PEAKS = [("llama", metric) for metric in METRICS] + [
    pytest.param(shape, metric, marks=pytest.mark.slow)
    for shape in ("deep llama", "one sample a batch", "bert")
    for metric in METRICS + (["labelwise(taylor, max)", "labelwise(fisher, mean)"] if shape == "bert" else [])
]


def step_peak(model, batch) -> int:
    """New bytes of a warm forward and backward of the row channel with every input kept."""
    config = RowSFTConfig(rows=8, importance="l1", target_modules="all-linear", recompute_inputs=False)
    wrapped = attach(model, config).train()

    def step():
        wrapped(**batch).loss.backward()
        wrapped.zero_grad()

    step()
    with AllocationPeak("cpu") as peak:
        step()
    return peak.new_peak_bytes


@cache
def allowed(shape) -> int:
    build, batches = SHAPES[shape]
    return step_peak(build(), batches[0])


@pytest.mark.parametrize(("shape", "metric"), CASES_OF_PEAKS)
def test_scoring_peaks_below_a_step_that_keeps_its_inputs(shape, metric):
    build, batches = SHAPES[shape]
    model = build()
    with AllocationPeak("cpu") as peak:
        score_axes(model, few_draws(metric), batches)
    assert 0 < peak.new_peak_bytes < allowed(shape)


def test_a_weight_larger_than_all_inputs_costs_its_own_gradient_and_no_more():
    """Nine tokens and wide layers: the bound is one layer's accumulator and gradient above backpropagation."""
    model, batches = llama(), [causal_batch(1, 9, seed=1), causal_batch(1, 9, seed=2)]
    with AllocationPeak("cpu") as peak:
        score(model, "taylor", batches)
    largest = 128 * 256 * 4
    assert peak.new_peak_bytes <= step_peak(llama(), batches[0]) + 2 * largest + largest // 2


def test_kept_inputs_are_shared_and_those_that_attention_keeps_are_free():
    model, batch = tiny_llama(), causal_batch(4, 32)
    kept = kept_inputs(layers_of(model), Context(model, [causal_batch(2, 5), batch]))
    width, tokens = 32 * 4, 4 * 32
    block = "model.layers.0"
    sizes = {name: sum(tensors.values()) for name, tensors in kept.items()}
    for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj"):
        assert sizes[f"{block}.{name}"] == tokens * width
    assert sizes[f"{block}.mlp.down_proj"] == 2 * tokens * width
    q, k, gate, up = (
        kept[f"{block}.{n}"] for n in ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj", "mlp.up_proj")
    )
    assert q == k != gate == up
    # The last layer's input is in use where a step's forward peaks, whoever keeps it.
    assert sizes["model.layers.1.mlp.down_proj"] == 0
    assert kept_bytes(kept) == sum({number: size for t in kept.values() for number, size in t.items()}.values())


@pytest.mark.parametrize("accumulators", [0, 1, 2])
def test_groups_keep_the_order_and_within_their_bytes(accumulators):
    model = tiny_llama()
    layers, batches = layers_of(model), [causal_batch(4, 32)]
    kept = kept_inputs(layers, Context(model, batches))
    for size in (0, 60_000, 150_000, 10**9):
        groups = groups_of(layers, Context(model, batches, group_bytes=size), Pass(accumulators))
        assert [name for group in groups for name in group] == list(layers)
        for group in groups:
            held = sum(layer.weight.numel() * 4 for layer in group.values()) * accumulators
            gradient = max(layer.weight.numel() * 4 for layer in group.values())
            assert len(group) == 1 or held + gradient + kept_bytes({n: kept[n] for n in group}) <= size
    assert len(groups_of(layers, Context(model, batches, group_bytes=0), Pass(accumulators))) == len(layers)
    assert len(groups) == 1


@pytest.mark.parametrize("metric", ["taylor", "taylor_row", "fisher", "taylor2"])
@pytest.mark.parametrize("case", CASES)
def test_groups_do_not_change_scores(case, metric):
    build, make = CASES[case]
    model = build(torch.float64)
    whole = score_axes(model, metric, make(), group_bytes=10**9)
    for size in (0, 60_000):
        close_axes(score_axes(model, metric, make(), group_bytes=size), whole, atol=1e-12)
