"""Matthews correlation for any number of classes."""

import numpy as np

from rowsft.tasks.metrics.array_metric import ArrayMetric


class Matthews(ArrayMetric):
    """Gorodkin (2004), equation 8: the correlation of the one-hot matrices of predictions and references."""

    label = "matthews"
    description = "Matthews correlation, -1 to 1; 0 where either side is constant."

    def score(self, predictions: np.ndarray, references: np.ndarray) -> float:
        classes = np.union1d(predictions, references)
        predicted = (predictions[:, None] == classes).astype(float)
        true = (references[:, None] == classes).astype(float)
        predicted -= predicted.mean(axis=0)
        true -= true.mean(axis=0)
        scale = np.sqrt((predicted**2).sum() * (true**2).sum())
        return (predicted * true).sum() / scale if scale else 0.0


METRIC = Matthews
