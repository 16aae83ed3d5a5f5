"""Label-wise scores against scoring each class by itself, and the aggregators against numpy."""

import numpy
import pytest
import torch
from scoring import CASES, classification_batches, close_axes, same, score_axes, snapshot
from tiny import causal_batch, classification_batch, tiny_bert, tiny_llama

from rowsft.errors import UserError
from rowsft.importance import metric
from rowsft.importance.labelwise import AGGREGATORS
from rowsft.tuner.attach import score

REFERENCES = {
    "mean": lambda s: s.mean(0),
    "max": lambda s: s.max(0),
    "upper_quantile_mean": lambda s: numpy.quantile(s, [0.5, 0.6, 0.7, 0.8, 0.9, 1.0], axis=0).mean(0),
    "quantile_mean": lambda s: numpy.quantile(s, [i / 10 for i in range(11)], axis=0).mean(0),
    "top5_mean": lambda s: numpy.sort(s, axis=0)[-5:].mean(0),
    "top5_and_mean": lambda s: (numpy.sort(s, axis=0)[-5:].mean(0) + s.mean(0)) / 2,
}


@pytest.mark.parametrize("classes", [1, 2, 3, 7, 77])
@pytest.mark.parametrize("name", AGGREGATORS)
def test_aggregator_is_numpys(name, classes):
    scores = torch.rand(classes, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(classes))
    expected = torch.from_numpy(REFERENCES[name](scores.numpy()))
    torch.testing.assert_close(AGGREGATORS[name](scores), expected, rtol=1e-12, atol=0)


def one_class(batches, label):
    """The batches with only the samples of one class, built sample by sample."""
    kept = []
    for batch in batches:
        rows = [row for row, found in enumerate(batch["labels"].tolist()) if found == label]
        if rows:
            kept.append({key: torch.stack([value[row] for row in rows]) for key, value in batch.items()})
    return kept


@pytest.mark.parametrize("inner", ["taylor", "taylor_row", "fisher", "wanda", "lowest(grad2)"])
def test_labelwise_scores_each_class_alone(inner):
    model, batches = tiny_bert(torch.float64), classification_batches()
    labels = sorted({label for batch in batches for label in batch["labels"].tolist()})
    assert len(labels) == 3
    alone = [score_axes(model, inner, one_class(batches, label)) for label in labels]
    for aggregator in ("max", "quantile_mean"):
        expected = {
            name: {
                axis: torch.from_numpy(REFERENCES[aggregator](numpy.stack([s[name][axis].numpy() for s in alone])))
                for axis in of_layer
            }
            for name, of_layer in alone[0].items()
        }
        found = score_axes(model, f"labelwise({inner}, {aggregator})", batches)
        close_axes(found, expected, rtol=1e-5)


def test_compositions_nest_both_ways():
    model, batches = tiny_bert(torch.float64), classification_batches()
    plain = score(model, "labelwise(taylor,max)", batches)
    turned = score(model, "lowest(labelwise(taylor,max))", batches)
    inner = score(model, "labelwise(lowest(taylor), mean)", batches)
    mean = score(model, "labelwise(taylor, mean)", batches)
    for name in plain:
        assert torch.equal(turned[name], -plain[name])
        torch.testing.assert_close(inner[name], -mean[name])
    assert metric("lowest(labelwise(taylor,max))").name == "lowest(labelwise(taylor, max))"


def test_unlabelled_samples_belong_to_no_class():
    model, batches = tiny_bert(torch.float64), classification_batches()
    marked = [dict(batch, labels=batch["labels"].clone()) for batch in batches]
    marked[0]["labels"][0] = -100
    cut = [{key: value[1:] for key, value in batches[0].items()}, batches[1]]
    close_axes(score_axes(model, "labelwise(fisher, mean)", marked), score_axes(model, "labelwise(fisher, mean)", cut))


def test_labelwise_leaves_the_model_as_it_was():
    model = tiny_bert().train()
    before = snapshot(model)
    score(model, "labelwise(taylor, max)", CASES["bert"][1]())
    assert same(before, snapshot(model))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("labelwise(taylor)", "expected labelwise.metric, aggregator. with an aggregator out of mean, max"),
        ("labelwise(taylor, median)", "with an aggregator out of mean, max, upper_quantile_mean, quantile_mean, top5"),
        ("labelwise(l1, max)", "l1 reads no calibration samples"),
        ("labelwise(l9, max)", "importance=l9: unknown metric"),
    ],
)
def test_wrong_names_are_explained(name, message):
    with pytest.raises(UserError, match=message):
        metric(name)


@pytest.mark.parametrize(
    ("model", "batch", "message"),
    [
        (tiny_llama, causal_batch(), r"batch 1 has labels of shape \(2, 9\)"),
        (tiny_bert, {**classification_batch(), "labels": torch.rand(4)}, r"labels of shape \(4,\) and torch.float32"),
        (tiny_bert, {k: v for k, v in classification_batch().items() if k != "labels"}, "batch 1 has no labels"),
    ],
)
def test_samples_need_one_class_each(model, batch, message):
    with pytest.raises(UserError, match=f"calibration {message}" if message.startswith("batch") else message):
        score(model(), "labelwise(taylor, max)", [classification_batch(), batch])
