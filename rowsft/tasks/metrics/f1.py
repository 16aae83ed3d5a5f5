"""F1: of class 1 where the labels are 0 and 1, the unweighted mean over classes otherwise."""

import numpy as np

from rowsft import formulas
from rowsft.tasks.metrics.array_metric import ArrayMetric


class F1(ArrayMetric):
    label = "f1"
    description = "2 TP / (2 TP + FP + FN): of class 1 for labels 0 and 1, else the mean over classes seen; 0 if empty."

    def score(self, predictions: np.ndarray, references: np.ndarray) -> float:
        return formulas.f1(predictions, references)


METRIC = F1
