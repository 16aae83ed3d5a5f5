"""Scores against plain autograd in float64, and the promise that scoring changes nothing."""

import random
from copy import deepcopy

import numpy
import pytest
import torch
from tiny import causal_batch, classification_batch, tiny_bert, tiny_gpt2, tiny_llama
from transformers.pytorch_utils import Conv1D

from rowsft.attach import attach, score
from rowsft.errors import UserError
from rowsft.importance import layer_generator, score_weights
from rowsft.importance.gradient import default_group_bytes, grouped
from rowsft.importance.registry import Context
from rowsft.selection import Targets, eligible_layers
from rowsft.tuner import RowSFTConfig


def causal_batches():
    """Three batches with very different numbers of labelled tokens."""
    batches = [causal_batch(2, 9, seed=1), causal_batch(3, 17, seed=2), causal_batch(2, 5, seed=3)]
    batches[0]["labels"][:, :6] = -100
    return batches


def classification_batches():
    return [classification_batch(5, 9, seed=1), classification_batch(2, 7, seed=2)]


CASES = {
    "llama": (tiny_llama, causal_batches),
    "gpt2": (tiny_gpt2, causal_batches),
    "bert": (tiny_bert, classification_batches),
}


def brute_force_taylor(model, batches, names):
    """abs(w g) summed over rows, g the gradient of the summed loss over all labelled items by their number."""
    total, count = 0.0, 0
    for batch in batches:
        logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
        labels = batch["labels"]
        if labels.dim() == 2:
            logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        kept = labels != -100
        chosen = torch.log_softmax(logits[kept], dim=-1)[torch.arange(int(kept.sum())), labels[kept]]
        total, count = total - chosen.sum(), count + int(kept.sum())
    weights = [model.get_submodule(name).weight for name in names]
    gradients = torch.autograd.grad(total / count, weights)
    scores = {}
    for name, weight, gradient in zip(names, weights, gradients, strict=True):
        product = (weight * gradient).abs()
        scores[name] = product.sum(0 if isinstance(model.get_submodule(name), Conv1D) else 1).detach()
    return scores


def close(scores, expected, rtol=1e-6):
    assert scores.keys() == expected.keys()
    for name in scores:
        assert scores[name].dtype == torch.float32
        torch.testing.assert_close(scores[name], expected[name].float(), rtol=rtol, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_taylor_is_the_gradient_of_the_mean_over_all_labelled_items(case):
    build, make = CASES[case]
    model, batches = build(torch.float64), make()
    names = list(eligible_layers(model, Targets()))
    close(score(model, "taylor", batches), brute_force_taylor(model, batches, names))


@pytest.mark.parametrize("case", CASES)
def test_taylor_in_float32_is_close_to_float64(case):
    build, make = CASES[case]
    names = list(eligible_layers(build(), Targets()))
    reference = build().double()
    close(score(build(), "taylor", make()), brute_force_taylor(reference, make(), names), rtol=1e-3)


def test_taylor_of_bfloat16_accumulates_in_float32():
    model, batches = tiny_llama(torch.bfloat16), causal_batches()
    name = "model.layers.0.self_attn.q_proj"
    weight = model.get_submodule(name).weight
    counts = [int((batch["labels"][:, 1:] != -100).sum()) for batch in batches]
    gradients = [torch.autograd.grad(model(**batch).loss, weight)[0].double() for batch in batches]
    mean = sum(g * n for g, n in zip(gradients, counts, strict=True)) / sum(counts)
    expected = (mean * weight.detach().double()).abs().sum(1)
    close(score(model, "taylor", batches, target_modules=["q_proj"], layers_to_transform=[0]), {name: expected}, 1e-5)


def test_taylor_weighs_regression_batches_by_examples():
    model = tiny_bert(torch.float64, num_labels=1)
    batches = [{**batch, "labels": batch["labels"].double() / 3} for batch in classification_batches()]
    names = list(eligible_layers(model, Targets()))
    inputs = [{k: v for k, v in batch.items() if k != "labels"} for batch in batches]
    errors = torch.cat([model(**x).logits[:, 0] - b["labels"] for x, b in zip(inputs, batches, strict=True)])
    weights = [model.get_submodule(name).weight for name in names]
    gradients = torch.autograd.grad(errors.square().mean(), weights)
    expected = {n: (w * g).abs().sum(1).detach() for n, w, g in zip(names, weights, gradients, strict=True)}
    close(score(model, "taylor", batches), expected)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("group_bytes", [0, 5000, 10**9])
def test_groups_do_not_change_scores(case, group_bytes):
    build, make = CASES[case]
    model = build(torch.float64)
    whole, parts = (
        score(model, "taylor", make(), group_bytes=10**9),
        score(model, "taylor", make(), group_bytes=group_bytes),
    )
    close(parts, whole)


def test_a_group_never_exceeds_its_bytes_but_for_a_single_layer():
    layers = eligible_layers(tiny_llama(), Targets())
    for size in (0, 9000, 30000, 10**9):
        groups = grouped(layers, size)
        assert [name for group in groups for name in group] == list(layers)
        assert all(len(g) == 1 or sum(m.weight.numel() * 4 for m in g.values()) <= size for g in groups)
    assert len(grouped(layers, 0)) == len(layers)
    assert len(grouped(layers, 10**9)) == 1


def test_default_group_stays_below_the_inputs_that_a_row_step_keeps():
    model = tiny_llama()
    layers = eligible_layers(model, Targets())
    batch = causal_batch(4, 32)
    size = default_group_bytes(layers, Context(model, [batch]))
    kept = 4 * 32 * 4 * 2 * (32 + 32 + 64)
    everything = sum(layer.weight.numel() * 4 for layer in layers.values())
    assert size > 0
    assert size + size / everything * kept + 32 * 64 * 4 <= kept


@pytest.mark.parametrize("metric", ["taylor", "l2", "random"])
@pytest.mark.parametrize("case", CASES)
def test_scoring_leaves_everything_bit_identical(case, metric):
    build, make = CASES[case]
    model = build()
    model.train()
    next(model.modules()).training = False
    parameters = list(model.parameters())
    for index, parameter in enumerate(parameters):
        parameter.requires_grad_(index % 3 != 0)
        parameter.grad = torch.full_like(parameter, float(index)) if index % 2 else None
    before = snapshot(model)
    score(model, metric, make(), group_bytes=5000)
    after = snapshot(model)
    assert [p.grad is None for p in parameters] == [bool(1 - i % 2) for i in range(len(parameters))]
    assert same(before, after)


def test_scoring_restores_the_model_when_a_batch_is_bad():
    model = tiny_llama()
    model.train()
    batches = causal_batches()
    before = snapshot(model)
    bad = {"inputs_embeds": torch.full((2, 9, 32), torch.nan), "labels": batches[0]["labels"]}
    with pytest.raises(UserError, match="calibration batch 3 has loss nan"):
        score(model, "taylor", [*batches, bad])
    assert same(before, snapshot(model))


def snapshot(model):
    return {
        "tensors": {name: tensor.clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]},
        "addresses": [tensor.data_ptr() for tensor in [*model.parameters(), *model.buffers()]],
        "grads": {
            n: None if p.grad is None else (p.grad.data_ptr(), p.grad.clone()) for n, p in model.named_parameters()
        },
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "hooks": [len(p._post_accumulate_grad_hooks or ()) for p in model.parameters()],
        "training": [module.training for module in model.modules()],
        "torch": torch.get_rng_state(),
        "numpy": numpy.random.get_state(),
        "python": random.getstate(),
    }


def same(left, right):
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, numpy.ndarray):
        return numpy.array_equal(left, right)
    return left == right


def test_scoring_restores_random_streams_and_buffers_that_a_model_uses_in_eval_mode():
    class Noisy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = tiny_llama()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, **batch):
            self.calls += 1
            torch.rand(3), numpy.random.rand(3), random.random()
            return self.inner(**batch)

    model = Noisy()
    before = snapshot(model)
    score(model, "taylor", causal_batches())
    assert same(before, snapshot(model))


def test_scoring_uses_eval_mode():
    model = tiny_bert(hidden_dropout_prob=0.5)
    expected = score(model.eval(), "taylor", classification_batches())
    close(score(model.train(), "taylor", classification_batches()), expected, rtol=0)


def test_scoring_works_under_no_grad():
    with torch.no_grad():
        inside = score(tiny_llama(), "taylor", causal_batches())
    close(inside, score(tiny_llama(), "taylor", causal_batches()), rtol=0)


@pytest.mark.parametrize("build", [tiny_llama, tiny_bert, tiny_gpt2])
@pytest.mark.parametrize(("metric", "power"), [("l1", 1), ("l2", 2)])
def test_norms_row_by_row(build, metric, power):
    model = build(torch.float64)
    for name, scores in score(model, metric).items():
        layer = model.get_submodule(name)
        weight = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
        rows = [sum(abs(w) ** power for w in row) for row in weight.tolist()]
        torch.testing.assert_close(scores, torch.tensor(rows), rtol=1e-6, atol=0)


def test_norms_of_bfloat16_accumulate_in_float32():
    weight = torch.full((2, 4096), 1.0, dtype=torch.bfloat16)
    weight[1, 0] = 3.0
    assert score_weights(weight, "l1", layer_generator(0, "x")).tolist() == [4096.0, 4098.0]


def test_random_depends_on_seed_and_layer_name_alone():
    model = tiny_llama()
    scores = score(model, "random", seed=3)
    one = score(model, "random", seed=3, target_modules=["v_proj"])
    assert all(torch.equal(one[name], scores[name]) for name in one)
    names = [name for name in scores if name.endswith(("k_proj", "v_proj"))]
    assert not torch.equal(scores[names[0]], scores[names[1]])
    assert not torch.equal(scores[names[0]], score(model, "random", seed=4)[names[0]])
    direct = score_weights(model.get_submodule(names[0]).weight, "random", layer_generator(3, names[0]))
    assert torch.equal(direct, scores[names[0]])


def test_lowest_turns_the_sign():
    model, batches = tiny_llama(), causal_batches()
    for metric in ("l2", "taylor"):
        plain, turned = score(model, metric, batches), score(model, f"lowest({metric})", batches)
        close({name: -scores for name, scores in turned.items()}, plain, rtol=0)


def test_shared_weight_gets_the_gradient_of_both_uses():
    model = tiny_llama(torch.float64)
    a, b = (model.get_submodule(f"model.layers.{i}.self_attn.q_proj") for i in (0, 1))
    b.weight = a.weight
    names = ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]
    scores = score(model, "taylor", causal_batches(), target_modules=["q_proj"])
    expected = brute_force_taylor(model, causal_batches(), names[:1])[names[0]]
    close(scores, dict.fromkeys(names, expected))


def test_progress_counts_every_batch_of_every_group():
    seen = []

    def progress(items, total):
        for item in items:
            seen.append((item, total))
            yield item

    layers = len(eligible_layers(tiny_llama(), Targets()))
    score(tiny_llama(), "taylor", causal_batches(), group_bytes=0, progress=progress)
    assert seen == [(index, 3 * layers) for index in range(3 * layers)]


@pytest.mark.parametrize(
    ("metric", "batches", "message"),
    [
        ("l3", [], r"importance=l3: unknown metric; use one of l1, l2, random, taylor"),
        ("lowest(l3)", [], r"importance=l3"),
        ("taylor", [], "calibration is empty"),
        ("taylor", [{"input_ids": torch.ones(1, 3, dtype=torch.long)}], "calibration batch 0 has no labels"),
        (
            "taylor",
            [causal_batch(), {**causal_batch(), "labels": torch.full((2, 9), -100)}],
            "calibration batch 1 has no labelled token",
        ),
    ],
)
def test_bad_input_is_named(metric, batches, message):
    with pytest.raises(UserError, match=message) as caught:
        score(tiny_llama(), metric, batches)
    assert "\n" not in str(caught.value)


def test_scores_that_are_not_finite_name_the_layer():
    model = tiny_llama()
    name = "model.layers.1.mlp.up_proj"
    with torch.no_grad():
        model.get_submodule(name).weight[3, 4] = torch.inf
    with pytest.raises(UserError, match=rf"{name} is not finite in 1 of 64 rows"):
        score(model, "l1")


def test_data_free_scoring_refuses_a_metric_that_needs_data():
    with pytest.raises(UserError, match="rowsft.attach"):
        score_weights(torch.ones(2, 2), "taylor", layer_generator(0, "x"))


@pytest.mark.parametrize("metric", ["taylor", "l1", "random"])
def test_attach_trains_the_rows_with_the_largest_scores(metric):
    model, batches = tiny_llama(), causal_batches()
    scores = score(deepcopy(model), metric, batches, target_modules=["q_proj", "down_proj"], seed=5)
    config = RowSFTConfig(rows=3, importance=metric, target_modules=["q_proj", "down_proj"], seed=5)
    wrapped = attach(model, config, batches)
    assert config.row_ids is None
    for name, row_scores in scores.items():
        ids = wrapped.base_model.model.get_submodule(name).row_sft_ids["default"].tolist()
        kept = row_scores[ids].min()
        assert len(ids) == 3
        assert ids == sorted(ids)
        assert (row_scores > kept).sum() <= 2


def test_attach_without_calibration_says_so():
    with pytest.raises(UserError, match="calibration is empty"):
        attach(tiny_llama(), RowSFTConfig(rows=3, importance="taylor", target_modules=["q_proj"]))
