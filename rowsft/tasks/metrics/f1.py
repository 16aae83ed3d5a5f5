"""F1: of class 1 where the labels are 0 and 1, the unweighted mean over classes otherwise."""

import numpy as np

from rowsft.tasks.metrics.array_metric import ArrayMetric


class F1(ArrayMetric):
    label = "f1"
    description = "2 TP / (2 TP + FP + FN): of class 1 for labels 0 and 1, else the mean over classes seen; 0 if empty."

    def score(self, predictions: np.ndarray, references: np.ndarray) -> float:
        classes = np.union1d(predictions, references)
        if set(classes) <= {0.0, 1.0}:
            classes = np.array([1.0])
        return np.mean([_f1(predictions == c, references == c) for c in classes])


def _f1(predicted: np.ndarray, true: np.ndarray) -> float:
    total = predicted.sum() + true.sum()
    return 2 * (predicted & true).sum() / total if total else 0.0


METRIC = F1
