"""Pearson correlation."""

import numpy as np

from rowsft import formulas
from rowsft.tasks.metrics.array_metric import ArrayMetric


class Pearson(ArrayMetric):
    label = "pearson"
    description = "Pearson correlation, -1 to 1; 0 where either side is constant."

    def score(self, predictions: np.ndarray, references: np.ndarray) -> float:
        return formulas.pearson(predictions, references)


METRIC = Pearson
