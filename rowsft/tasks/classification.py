"""Sequence classification and regression: encoding of one text or a pair, right padding, metrics from logits."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.special import log_softmax

from rowsft.errors import UserError, shortened
from rowsft.tasks import Evaluation, Progress, Size, metrics
from rowsft.tasks.base import SplitTask
from rowsft.tasks.evaluating import run_batches
from rowsft.tasks.heads import SEQUENCE_CLASSIFICATION, label_settings
from rowsft.tasks.long_examples import longer


class ClassificationTask(SplitTask):
    """Examples are {"id", "text", "pair" (absent for single texts), "label"}; labels are class indices or floats."""

    head = SEQUENCE_CLASSIFICATION
    higher_is_better = True

    def __init__(
        self,
        name: str,
        max_length: int,
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

    def may_encode_nothing(self, tokenizer, /) -> bool:
        """Whether a text without tokens stays without: nothing is put around it."""
        return not tokenizer("")["input_ids"]

    def encode(self, examples: list[dict], tokenizer, /) -> list[dict]:
        """input_ids (and token_type_ids where the model has them) cut to max_length tokens, labels, no padding."""
        pairs = [example["pair"] for example in examples] if examples and "pair" in examples[0] else None
        texts = [example["text"] for example in examples]
        out = tokenizer(texts, pairs, truncation=True, max_length=self.max_length, return_attention_mask=False)
        names = [name for name in ("input_ids", "token_type_ids") if name in out]
        return [
            {**{name: out[name][i] for name in names}, "labels": example["label"]} for i, example in enumerate(examples)
        ]

    def too_long(self, examples: list[dict], tokenizer, /) -> list[bool]:
        """Whether the text, or both texts of a pair, have more than max_length tokens with those around them."""

        def count(example: dict) -> int:
            return len(tokenizer(example["text"], example.get("pair"), truncation=False, verbose=False)["input_ids"])

        return longer(examples, ("text", "pair"), self.max_length, count)

    @property
    def _label_dtype(self) -> torch.dtype:
        return torch.float32 if self.is_regression else torch.long

    def collator(self, tokenizer, model=None, /) -> Callable[[list[dict]], dict[str, torch.Tensor]]:
        """Right padding to the longest example: input_ids, attention_mask (batch, length), labels (batch,)."""
        dtype = self._label_dtype
        return lambda encoded: pad_right(encoded, tokenizer.pad_token_id, dtype)

    def dummy_batch(self, model, count: int, size: Size, empty: Callable[..., torch.Tensor]) -> dict[str, torch.Tensor]:
        """The collator's tensors; token_type_ids for a model that tells the texts of a pair apart, as BERT does."""
        names = ["input_ids", "attention_mask"]
        if getattr(model.config, "type_vocab_size", 0) > 1:
            names.append("token_type_ids")
        batch = {name: empty((count, size.tokens)) for name in names}
        return {**batch, "labels": empty((count,), self._label_dtype)}

    def evaluate(
        self, model, examples: list[dict], tokenizer, /, batch_size: int, progress: Progress = None
    ) -> Evaluation:
        """The task's metrics and the mean loss (cross-entropy in nats, or squared error); scores are the logits."""
        logits = np.array(
            run_batches(
                model,
                self.encode(examples, tokenizer),
                self.collator(tokenizer),
                batch_size,
                progress,
                self.read_batch,
            )
        )
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

    def reference_metrics(self, model, examples: list[dict], tokenizer, /) -> dict[str, float]:
        """Accuracy of always answering the commonest class of the training split (classification alone)."""
        if self.is_regression:
            return {}
        commonest, _ = Counter(example["label"] for example in self.splits()["train"]).most_common(1)[0]
        return {"majority_accuracy": float(np.mean([example["label"] == commonest for example in examples]))}


def pad_right(encoded: list[dict], pad_id: int, label_dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Stack encoded examples: pads carry mask 0 and token type 0."""
    length = max(len(example["input_ids"]) for example in encoded)
    batch: dict[str, Any] = {
        "input_ids": [_fill(example["input_ids"], pad_id, length) for example in encoded],
        "attention_mask": [_fill([1] * len(example["input_ids"]), 0, length) for example in encoded],
    }
    if "token_type_ids" in encoded[0]:
        batch["token_type_ids"] = [_fill(example["token_type_ids"], 0, length) for example in encoded]
    batch = {name: torch.tensor(rows) for name, rows in batch.items()}
    return {**batch, "labels": torch.tensor([example["labels"] for example in encoded], dtype=label_dtype)}


def _fill(row: list[int], value: int, length: int) -> list[int]:
    return [*row, *[value] * (length - len(row))]


def _loss(logits: np.ndarray, labels: np.ndarray) -> float:
    if logits.shape[1] == 1:
        return float(np.mean((logits[:, 0] - labels) ** 2))
    return float(-np.mean(log_softmax(logits, axis=1)[np.arange(len(labels)), labels]))
