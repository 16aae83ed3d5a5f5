"""Metrics against scipy and formulas written out."""

import numpy as np
import pytest
from scipy import stats

from rowsft.errors import UserError
from rowsft.tasks import metrics

RNG = np.random.default_rng(0)
CLASSES = RNG.integers(0, 3, 50), RNG.integers(0, 3, 50)
BINARY = RNG.integers(0, 2, 50), RNG.integers(0, 2, 50)
VALUES = RNG.normal(size=50).round(1), RNG.normal(size=50).round(1)


def test_accuracy_counts_equal_entries():
    predictions, references = CLASSES
    expected = sum(p == r for p, r in zip(predictions, references, strict=True)) / 50
    assert metrics.compute(["accuracy"], *CLASSES) == {"accuracy": pytest.approx(expected)}


def test_correlations_equal_scipys():
    got = metrics.compute(["pearson", "spearman"], *VALUES)
    assert got["pearson"] == pytest.approx(stats.pearsonr(*VALUES).statistic)
    assert got["spearman"] == pytest.approx(stats.spearmanr(*VALUES).statistic)


def test_matthews_of_two_classes_is_the_textbook_formula_and_of_three_the_covariance_form():
    predictions, references = BINARY
    tp, tn = (predictions & references).sum(), ((1 - predictions) & (1 - references)).sum()
    fp, fn = (predictions & (1 - references)).sum(), ((1 - predictions) & references).sum()
    textbook = (tp * tn - fp * fn) / np.sqrt(float((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))
    assert metrics.compute(["matthews"], *BINARY)["matthews"] == pytest.approx(textbook)
    predictions, references = CLASSES
    confusion = np.array([[((references == t) & (predictions == p)).sum() for p in range(3)] for t in range(3)])
    n, true, predicted = confusion.sum(), confusion.sum(1), confusion.sum(0)
    above = n * np.trace(confusion) - true @ predicted
    below = np.sqrt(float(n**2 - predicted @ predicted)) * np.sqrt(float(n**2 - true @ true))
    assert metrics.compute(["matthews"], *CLASSES)["matthews"] == pytest.approx(above / below)


def test_f1_is_of_class_one_for_two_classes_and_the_mean_for_more():
    def one(predictions, references, c):
        precision = np.mean(references[predictions == c] == c)
        recall = np.mean(predictions[references == c] == c)
        return 2 * precision * recall / (precision + recall)

    assert metrics.compute(["f1"], *BINARY)["f1"] == pytest.approx(one(*BINARY, 1))
    assert metrics.compute(["f1"], *CLASSES)["f1"] == pytest.approx(np.mean([one(*CLASSES, c) for c in range(3)]))


def test_constant_predictions_score_zero_not_nan():
    constant = np.zeros(50)
    got = metrics.compute(["pearson", "spearman", "matthews", "f1"], constant, BINARY[1])
    assert set(got.values()) == {0.0}


def test_an_unknown_metric_lists_the_known_ones():
    with pytest.raises(UserError, match="rouge.*accuracy, f1, matthews, pearson, spearman"):
        metrics.check(["rouge"])
