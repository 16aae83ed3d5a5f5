"""Spearman rank correlation."""

import numpy as np

from rowsft import formulas
from rowsft.tasks.metrics.array_metric import ArrayMetric


class Spearman(ArrayMetric):
    label = "spearman"
    description = "Spearman rank correlation, -1 to 1, ties at their mean rank; 0 where either side is constant."

    def score(self, predictions: np.ndarray, references: np.ndarray) -> float:
        return formulas.spearman(predictions, references)


METRIC = Spearman
