"""Metrics on all resamples at once against one resample at a time, and formulas against numpy and scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from rowsft import formulas
from rowsft.report import resampling
from rowsft.tasks import metrics


def examples(kind, n=150, seed=0):
    generator = np.random.default_rng(seed)
    label = generator.integers(0, {"binary": 2, "classes": 5}.get(kind, 4), n)
    wrong = generator.random(n) < 0.4
    if kind in ("binary", "classes"):
        return np.where(wrong, generator.permutation(label), label), label
    return label + generator.normal(size=n).round(1), label.astype(float)


CASES = [
    ("accuracy", "classes"),
    ("f1", "binary"),
    ("f1", "classes"),
    ("matthews", "binary"),
    ("matthews", "classes"),
    ("pearson", "values"),
    ("spearman", "values"),
]


@pytest.mark.parametrize("name, kind", CASES)
def test_all_resamples_at_once_are_the_metric_on_each(name, kind):
    prediction, label = examples(kind)
    formula = formulas.FORMULAS[name]
    each = resampling.one_by_one(lambda rows: formula(prediction[rows], label[rows]), len(label))
    assert len(each) == resampling.RESAMPLES
    np.testing.assert_allclose(resampling.metric(name, prediction, label), each, atol=2e-5)


def test_a_mean_over_tokens_is_the_ratio_of_resampled_sums():
    generator = np.random.default_rng(3)
    tokens = generator.integers(1, 200, 120).astype(float)
    sums = generator.gamma(2.0, 1.5, 120) * tokens
    each = resampling.one_by_one(lambda rows: sums[rows].sum() / tokens[rows].sum(), 120)
    np.testing.assert_allclose(resampling.ratios(sums, tokens), each, rtol=1e-5)


@pytest.mark.parametrize("name", ["f1", "matthews", "pearson", "spearman"])
def test_constants_are_zero_in_the_task_and_in_the_report(name):
    constant, label = np.ones(20), np.tile([0.0, 2.0], 10)
    if name == "f1":
        constant, label = np.zeros(20), np.ones(20)
    assert metrics.compute([name], constant, label) == {name: 0.0}
    assert formulas.FORMULAS[name](constant, label) == 0.0
    assert (resampling.metric(name, constant, label) == 0.0).all()


def test_formulas_are_those_of_numpy_and_scipy():
    a, b = (side.astype(float) for side in examples("classes"))
    assert formulas.pearson(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert formulas.spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    x, y = examples("binary")
    tp, tn = int((x & y).sum()), int(((1 - x) & (1 - y)).sum())
    fp, fn = int((x & (1 - y)).sum()), int(((1 - x) & y).sum())
    expected = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert formulas.matthews(x, y) == pytest.approx(expected)
    assert formulas.f1(x, y) == pytest.approx(2 * tp / (2 * tp + fp + fn))


def test_f1_of_several_classes_is_the_mean_over_classes():
    prediction, label = examples("classes")
    each = []
    for one in range(5):
        precision = np.mean(label[prediction == one] == one)
        recall = np.mean(prediction[label == one] == one)
        each.append(2 / (1 / precision + 1 / recall))
    assert formulas.f1(prediction, label) == pytest.approx(np.mean(each))


def test_many_examples_have_fewer_resamples():
    assert [resampling.resamples(n) for n in (1, 2000, 8000, 10**6)] == [2000, 2000, 500, 200]
