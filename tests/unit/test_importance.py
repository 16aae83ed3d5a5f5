"""The contract of scoring: what it weighs, that it changes nothing, and how bad input is refused."""

import random
from copy import deepcopy
from types import SimpleNamespace

import numpy
import pytest
import torch
from scoring import CASES, causal_batches, classification_batches, close, few_draws, same, snapshot
from tiny import causal_batch, tiny_bert, tiny_llama
from torch import nn

from rowsft.errors import UserError
from rowsft.importance import layer_generator
from rowsft.importance.reduction import sums
from rowsft.selection.targets import Targets, eligible_layers
from rowsft.tuner import RowSFTConfig
from rowsft.tuner.attach import attach, score

DATA_METRICS = ["taylor", "taylor_row", "grad2", "fisher", "taylor2", "wanda", "zo_taylor"]


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


@pytest.mark.parametrize("metric", [*DATA_METRICS, "l2", "random"])
@pytest.mark.parametrize("case", ["llama", "bert"])
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
    score(model, few_draws(metric), make(), group_bytes=60000)
    after = snapshot(model)
    assert [p.grad is None for p in parameters] == [bool(1 - i % 2) for i in range(len(parameters))]
    assert same(before, after)


@pytest.mark.parametrize("metric", [*DATA_METRICS, "lowest(taylor)"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scoring_restores_the_model_when_a_batch_is_bad(metric, dtype):
    model = tiny_llama(dtype)
    model.train()
    before = snapshot(model)
    bad = {"inputs_embeds": torch.full((2, 9, 32), torch.nan, dtype=dtype), "labels": causal_batch()["labels"]}
    message = "calibration batch 1: the input of layer" if metric == "wanda" else "calibration batch 1 has loss nan"
    with pytest.raises(UserError, match=message):
        score(model, few_draws(metric), [causal_batch(), bad])
    assert same(before, snapshot(model))


@pytest.mark.parametrize("metric", DATA_METRICS)
def test_scoring_restores_the_model_when_its_forward_raises(metric):
    class Failing(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.calls = tiny_llama(torch.bfloat16), 0

        def forward(self, **batch):
            self.calls += 1
            if self.calls == 3:
                self.inner.model.layers[1].mlp.down_proj(torch.ones(2, 5))
            return self.inner(**batch)

    model = Failing()
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="shape|dtype"):
        score(model, few_draws(metric), causal_batches() + causal_batches())
    assert same(before, snapshot(model))


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


class InPlace(nn.Module):
    """Works in place on what its first layer gives, or on a copy of it: as DeBERTa scales queries, OLMo clamps them."""

    def __init__(self, in_place: bool):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second = nn.Linear(6, 8).double(), nn.Linear(4, 3).double()
        for parameter in self.parameters():
            parameter.data.normal_(generator=generator)
        self.in_place = in_place

    def forward(self, x, labels):
        hidden = self.first(x)
        view = (hidden if self.in_place else hidden.clone()).view(len(x), 2, 4)
        view /= 3
        return SimpleNamespace(loss=nn.functional.cross_entropy(self.second(view[:, 1]), labels))


@pytest.mark.parametrize("metric", DATA_METRICS)
def test_a_model_may_work_in_place_on_a_layers_output(metric):
    generator = torch.Generator().manual_seed(1)
    batch = {"x": torch.randn(5, 6, generator=generator).double(), "labels": torch.tensor([0, 2, 1, 1, 0])}
    close(*(score(InPlace(in_place), few_draws(metric), [batch]) for in_place in (True, False)))


@pytest.mark.parametrize("metric", DATA_METRICS)
def test_layers_that_the_loss_does_not_read_score_zero(metric):
    model = tiny_bert(torch.float64)
    model.spare = nn.Linear(32, 8).double()
    batches = classification_batches()
    expected = score(tiny_bert(torch.float64), few_draws(metric), batches)
    scores = score(model, few_draws(metric), batches, group_bytes=0)
    close({name: each for name, each in scores.items() if name in expected}, expected, rtol=1e-5)
    if metric != "zo_taylor":
        assert not scores["spare"].any()


@pytest.mark.parametrize("metric", ["taylor", "taylor_row", "fisher", "labelwise(grad2, max)"])
def test_a_loss_that_reads_no_target_layer_is_refused(metric):
    model = tiny_bert()
    model.spare = nn.Linear(32, 8)
    with pytest.raises(UserError, match="the loss of BertForSequenceClassification has no gradient .* the 1 target"):
        score(model, metric, classification_batches(), target_modules=["spare"])


def test_scoring_works_under_inference_mode():
    model, batches = tiny_llama(), causal_batches()
    with torch.inference_mode():
        inside = score(model, "taylor", batches)
    close(inside, score(model, "taylor", batches), rtol=0)


def test_scoring_works_under_no_grad():
    with torch.no_grad():
        inside = score(tiny_llama(), "taylor", causal_batches())
    close(inside, score(tiny_llama(), "taylor", causal_batches()), rtol=0)


def test_norms_of_bfloat16_accumulate_in_float32():
    layer = nn.Linear(4096, 2, dtype=torch.bfloat16)
    nn.init.ones_(layer.weight)
    layer.weight.data[1, 0] = 3.0
    assert score(nn.Sequential(layer), "l1")["0"].tolist() == [4096.0, 4098.0]


@pytest.mark.parametrize("shape", [(1, 1), (3, 5000), (5000, 3), (700, 40)])
def test_sums_cover_every_block_once(shape):
    rows, columns = shape
    layer = nn.Linear(columns, rows).double()
    values = torch.arange(rows * columns, dtype=torch.float64).view(rows, columns)
    found = sums(layer, ("rows", "columns"), lambda a, b: a * b, layer.weight.detach(), values)
    product = layer.weight.detach() * values
    torch.testing.assert_close(found["rows"], product.sum(1))
    torch.testing.assert_close(found["columns"], product.sum(0))


def test_random_depends_on_seed_and_layer_name_alone():
    model = tiny_llama()
    scores = score(model, "random", seed=3)
    one = score(model, "random", seed=3, target_modules=["v_proj"])
    assert all(torch.equal(one[name], scores[name]) for name in one)
    names = [name for name in scores if name.endswith(("k_proj", "v_proj"))]
    assert not torch.equal(scores[names[0]], scores[names[1]])
    assert not torch.equal(scores[names[0]], score(model, "random", seed=4)[names[0]])
    rows = len(scores[names[0]])
    assert torch.equal(torch.rand(rows, generator=layer_generator(3, names[0])), scores[names[0]])


def test_lowest_turns_the_sign():
    model, batches = tiny_llama(), causal_batches()
    for metric in ("l2", "taylor"):
        plain, turned = score(model, metric, batches), score(model, f"lowest({metric})", batches)
        close({name: -scores for name, scores in turned.items()}, plain, rtol=0)


def test_progress_counts_every_batch_of_every_group():
    seen = []

    def progress(items, total):
        for item in items:
            seen.append((item, total))
            yield item

    layers = len(eligible_layers(tiny_llama(), Targets()))
    score(tiny_llama(), "taylor", causal_batches(), group_bytes=0, progress=progress)
    assert seen == [(index, 3 * layers) for index in range(3 * layers)]


NO_LABELS = {"input_ids": torch.ones(1, 3, dtype=torch.long)}
EMPTY = {key: value[:0] for key, value in causal_batch().items()}
UNLABELLED = {**causal_batch(), "labels": torch.full((2, 9), -100)}


@pytest.mark.parametrize(
    ("metric", "batches", "message"),
    [
        (
            "l3",
            [],
            r"importance=l3: unknown metric; use one of change, first, fisher, grad2, l1, l2, lift, random, taylor, "
            r"taylor2, taylor_row, wanda, zo_taylor, lowest\(metric\) or labelwise\(metric, aggregator\)",
        ),
        ("lowest(l3)", [], "importance=l3"),
        ("highest(l1)", [], r"importance=highest\(l1\): unknown"),
        ("taylor", [], "calibration is empty"),
        ("taylor", causal_batch(), r"single batch \(input_ids, .*calibration=\[batch\]"),
        ("taylor", [torch.ones(2, 3)], "calibration batch 0 is a Tensor; expected a dict"),
        ("taylor", [NO_LABELS], "calibration batch 0 has no labels"),
        ("fisher", [NO_LABELS], "calibration batch 0 has no labels"),
        ("taylor_row", [NO_LABELS], "calibration batch 0 has no labels"),
        ("zo_taylor", [NO_LABELS], "calibration batch 0 has no labels"),
        ("taylor", [causal_batch(), UNLABELLED], "calibration batch 1 has no labelled token"),
        ("fisher", [causal_batch(), UNLABELLED], "calibration batch 1 has no labelled token"),
        ("taylor", [{**causal_batch(), "labels": [[1, 2]]}], "batch 0 has labels that are list; expected a tensor"),
        ("fisher", [{**causal_batch(), "labels": torch.tensor(1)}], r"labels that are a tensor of shape \(\)"),
        ("taylor", [EMPTY], "calibration batch 0 has no sample"),
    ],
)
def test_bad_input_is_named(metric, batches, message):
    with pytest.raises(UserError, match=message) as caught:
        score(tiny_llama(), metric, batches)
    assert "\n" not in str(caught.value)


def test_a_model_without_a_loss_is_named():
    with pytest.raises(UserError, match="LossLess returns no loss for calibration batch 0"):
        score(LossLess(), "taylor", [causal_batch()])


class LossLess(nn.Module):
    """A model without a head: it takes labels and makes nothing of them."""

    def __init__(self):
        super().__init__()
        self.inner = tiny_llama().model

    def forward(self, labels, **batch):
        return self.inner(**batch)


@pytest.mark.parametrize("metric", ["taylor", "fisher", "taylor2", "grad2", "taylor_row"])
def test_a_gradient_that_is_not_finite_names_layer_and_batch(metric):
    model, name = tiny_llama(), "model.layers.1.mlp.up_proj"

    def spoil(layer, args):
        if args[0].shape[1] == 5 and args[0].requires_grad:
            args[0].register_hook(lambda gradient: gradient * torch.nan)

    # In front of the next layer, so that the gradient is spoilt before the scored one sees it.
    model.get_submodule("model.layers.1.mlp.down_proj").register_forward_pre_hook(spoil)
    with pytest.raises(UserError, match=rf"calibration batch 2: the .* of layer {name} is not finite"):
        score(model, metric, causal_batches(), target_modules=["up_proj"], layers_to_transform=[1])


@pytest.mark.parametrize("metric", ["taylor", "l1", "wanda"])
def test_calibration_may_be_an_iterator(metric):
    config = RowSFTConfig(rows=3, importance=metric, target_modules=["q_proj"])
    once = score(tiny_llama(), metric, (batch for batch in causal_batches()), target_modules=["q_proj"])
    close(once, score(tiny_llama(), metric, causal_batches(), target_modules=["q_proj"]), rtol=0)
    first, second = attach(tiny_llama(), config, iter(causal_batches())), attach(tiny_llama(), config, causal_batches())
    name = "model.layers.0.self_attn.q_proj"
    ids = [wrapped.base_model.model.get_submodule(name).row_sft_ids["default"] for wrapped in (first, second)]
    assert torch.equal(*ids)


def test_scores_that_are_not_finite_name_the_layer():
    model = tiny_llama()
    name = "model.layers.1.mlp.up_proj"
    with torch.no_grad():
        model.get_submodule(name).weight[3, 4] = torch.inf
    with pytest.raises(UserError, match=rf"{name} is not finite in 1 of 64 rows"):
        score(model, "l1")


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
