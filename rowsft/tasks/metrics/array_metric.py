"""The part that all metrics share: numbers in, one number out under the metric's own name."""

from abc import abstractmethod

import datasets
import evaluate
import numpy as np


class ArrayMetric(evaluate.Metric):
    """An evaluate.Metric whose `score` gets two float64 arrays of shape (examples,)."""

    label: str
    description: str

    def _info(self) -> evaluate.MetricInfo:
        number = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=self.description,
            citation="",
            inputs_description="predictions, references: numbers (class indices or values)",
            features=datasets.Features({"predictions": number, "references": number}),
        )

    def _compute(self, predictions, references) -> dict[str, float]:
        return {self.label: float(self.score(np.asarray(predictions, float), np.asarray(references, float)))}

    @abstractmethod
    def score(self, predictions: np.ndarray, references: np.ndarray) -> float:
        """The metric's value."""
