"""Matthews correlation for any number of classes."""

import numpy as np

from rowsft import formulas
from rowsft.tasks.metrics.array_metric import ArrayMetric


class Matthews(ArrayMetric):
    """Gorodkin (2004), equation 8: the correlation of the one-hot matrices of predictions and references."""

    label = "matthews"
    description = "Matthews correlation, -1 to 1; 0 where either side is constant."

    def score(self, predictions: np.ndarray, references: np.ndarray) -> float:
        return formulas.matthews(predictions, references)


METRIC = Matthews
