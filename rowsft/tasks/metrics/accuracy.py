"""Share of predictions that equal the reference."""

import numpy as np

from rowsft import formulas
from rowsft.tasks.metrics.array_metric import ArrayMetric


class Accuracy(ArrayMetric):
    label = "accuracy"
    description = "Share of predictions that equal the reference, 0 to 1."

    def score(self, predictions: np.ndarray, references: np.ndarray) -> float:
        return formulas.accuracy(predictions, references)


METRIC = Accuracy
