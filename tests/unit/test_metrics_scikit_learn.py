"""Every metric of classes and numbers against scikit-learn's and scipy's own, in evaluation and in the report alike."""

import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from rowsft.report import predictions as pred
from rowsft.tasks import metrics


def macro_f1(labels, predicted):
    return f1_score(labels, predicted, average="macro", zero_division=0)


def binary_f1(labels, predicted):
    return f1_score(labels, predicted, average="binary", zero_division=0)


REFERENCES = {
    (2, "accuracy"): accuracy_score,
    (4, "accuracy"): accuracy_score,
    (2, "f1"): binary_f1,
    (4, "f1"): macro_f1,
    (2, "matthews"): matthews_corrcoef,
    (4, "matthews"): matthews_corrcoef,
    (0, "pearson"): lambda labels, predicted: stats.pearsonr(predicted, labels).statistic,
    (0, "spearman"): lambda labels, predicted: stats.spearmanr(predicted, labels).statistic,
}


def outputs(classes: int, seed: int, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions that are right more often than by chance; numbers with ties where classes is 0."""
    draw = np.random.default_rng(seed)
    if not classes:
        labels = draw.normal(size=n).round(1)
        return labels, (labels + draw.normal(size=n)).round(1)
    labels = draw.integers(0, classes, n)
    return labels, np.where(draw.random(n) < 0.6, labels, draw.integers(0, classes, n))


@pytest.mark.parametrize(("classes", "name"), REFERENCES)
def test_evaluation_and_report_give_the_librarys_value(classes, name):
    for seed in range(20):
        labels, predicted = outputs(classes, seed)
        expected = REFERENCES[classes, name](labels, predicted)
        assert metrics.compute([name], predicted, labels)[name] == pytest.approx(expected, abs=1e-12)
        lines = [
            {"id": str(i), "prediction": one, "label": other}
            for i, (one, other) in enumerate(zip(predicted.tolist(), labels.tolist(), strict=True))
        ]
        found = pred.scored_lines(lines, name, float(expected))
        # Any subset of the examples: what the bootstrap asks for. Lines stand in the order of their ids.
        rows = np.random.default_rng(seed).integers(0, len(lines), len(lines))
        numbers = np.array([int(one) for one in found.ids])[rows]
        drawn = REFERENCES[classes, name](labels[numbers], predicted[numbers])
        assert found.metric(rows) == pytest.approx(drawn, abs=1e-12)


@pytest.mark.parametrize("name", ["accuracy", "f1", "matthews"])
@pytest.mark.parametrize("predicted", [[0, 0, 0, 0], [1, 1, 1, 1], [3, 3, 0, 1]])
def test_classes_that_are_never_predicted_or_never_right(name, predicted):
    labels = [0, 1, 2, 3] if 3 in predicted else [0, 1, 1, 0]
    reference = {"accuracy": accuracy_score, "matthews": matthews_corrcoef}.get(
        name, macro_f1 if 3 in predicted else binary_f1
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = reference(labels, predicted)
    assert metrics.compute([name], np.array(predicted), np.array(labels))[name] == pytest.approx(expected)
