"""Pearson correlation."""

import numpy as np

from rowsft.tasks.metrics.array_metric import ArrayMetric


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation of two arrays (examples,); 0 where one of them is constant: it explains nothing."""
    a, b = a - a.mean(), b - b.mean()
    scale = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / scale) if scale else 0.0


class Pearson(ArrayMetric):
    label = "pearson"
    description = "Pearson correlation, -1 to 1; 0 where either side is constant."

    def score(self, predictions: np.ndarray, references: np.ndarray) -> float:
        return correlation(predictions, references)


METRIC = Pearson
