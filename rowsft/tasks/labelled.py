"""Classification and regression of whatever a model reads: labels, metrics from logits, the commonest class."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.special import log_softmax

from rowsft.errors import UserError, shortened
from rowsft.tasks import Evaluation, Progress, metrics
from rowsft.tasks.base import SplitTask
from rowsft.tasks.evaluating import run_batches
from rowsft.tasks.heads import label_settings


class LabelledTask(SplitTask):
    """Examples have an "id" and a "label", a class index or a number; subclasses add the head and the encoding."""

    higher_is_better = True

    def __init__(
        self,
        name: str,
        max_length: int | None,
        primary_metric: str,
        extra_metrics: Sequence[str] = (),
        limits: Mapping[str, int | None] | None = None,
        long_examples: str = "truncate",
    ):
        super().__init__(name, max_length, limits, long_examples)
        self.primary_metric = primary_metric
        if isinstance(extra_metrics, str) or not isinstance(extra_metrics, Sequence):
            raise UserError(f"task.extra_metrics={shortened(extra_metrics)}: expected a list of metrics, such as [f1]")
        metrics.check([primary_metric, *extra_metrics])
        self.metric_names = list(dict.fromkeys([primary_metric, *extra_metrics]))

    @property
    @abstractmethod
    def num_labels(self) -> int:
        """Number of classes; 1 for regression."""

    @property
    def is_regression(self) -> bool:
        return self.num_labels == 1

    def head_settings(self, num_labels: int | None = None) -> dict[str, Any]:
        """num_labels and problem_type."""
        return label_settings(self.num_labels if num_labels is None else num_labels)

    @property
    def _label_dtype(self) -> torch.dtype:
        return torch.float32 if self.is_regression else torch.long

    def evaluate(
        self, model, examples: list[dict], processor, /, batch_size: int, progress: Progress = None
    ) -> Evaluation:
        """The task's metrics and the mean loss (cross-entropy in nats, or squared error); scores are the logits."""
        encoded = self.kept_tokens("encode", examples, processor, lambda: self.encode(examples, processor))
        collate = self.collator(processor)
        logits = np.array(run_batches(model, encoded, collate, batch_size, progress, self.read_batch))
        labels = np.array([example["label"] for example in examples])
        predicted = logits[:, 0] if self.is_regression else logits.argmax(axis=1)
        numbers = metrics.compute(self.metric_names, predicted, labels)
        numbers["loss"] = _loss(logits, labels)
        rows = zip(examples, predicted.tolist(), logits.tolist(), strict=True)
        return Evaluation(
            numbers,
            [
                {"id": example["id"], "prediction": prediction, "label": example["label"], "scores": scores}
                for example, prediction, scores in rows
            ],
        )

    @staticmethod
    def read_batch(output, batch: dict[str, Any]) -> list[list[float]]:
        """The logits of every example of a batch."""
        return output.logits.double().cpu().tolist()

    def reference_metrics(self, model, examples: list[dict], processor, /) -> dict[str, float]:
        """Accuracy of always answering the commonest class of the training split (classification alone)."""
        if self.is_regression:
            return {}
        commonest, _ = Counter(example["label"] for example in self.splits()["train"]).most_common(1)[0]
        return {"majority_accuracy": float(np.mean([example["label"] == commonest for example in examples]))}


def _loss(logits: np.ndarray, labels: np.ndarray) -> float:
    if logits.shape[1] == 1:
        return float(np.mean((logits[:, 0] - labels) ** 2))
    return float(-np.mean(log_softmax(logits, axis=1)[np.arange(len(labels)), labels]))
