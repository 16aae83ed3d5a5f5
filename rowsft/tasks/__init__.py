"""Data sets as tasks: splits, encoded examples, batches, evaluation. One file a task; adding one edits nothing else.

May import assets and the store's file helpers. Must not know methods, or models beyond their configuration.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

# Wraps an iterable to show progress: wrap(items, total=None). None shows nothing.
Progress = Callable[..., Iterable] | None


@dataclass(frozen=True)
class Evaluation:
    """`metrics`: name -> number over all examples. `predictions`: one JSON-able dict an example, in the order given."""

    metrics: dict[str, float]
    predictions: list[dict[str, Any]] = field(default_factory=list)


class Task(Protocol):
    """What a run needs from a task. Building one reads no data; `splits` does, once.

    `head` is sequence_classification or causal_lm; `num_labels` and `problem_type` are None for a language model.
    Choose on train, tune on validation, report on test.
    """

    name: str
    head: str
    num_labels: int | None
    problem_type: str | None
    primary_metric: str
    higher_is_better: bool

    def splits(self) -> dict[str, list[dict]]:
        """train, validation and test as lists of plain dicts, each with an `id` that no change of settings alters."""

    def encode(self, examples: list[dict], tokenizer) -> list[dict]:
        """One training sequence an example: unpadded input_ids (list of int), labels, and what else the model takes."""

    def collator(self, tokenizer, model=None) -> Callable[[list[dict]], dict[str, Any]]:
        """A function from encoded examples to a batch that model.forward accepts.

        Entries are tensors with the batch first, except `logits_to_keep` (int) of language models. `model` is needed
        only for a language model whose forward takes no logits_to_keep.
        """

    def evaluate(
        self, model, examples: list[dict], tokenizer, batch_size: int, progress: Progress = None
    ) -> Evaluation:
        """Metrics and predictions in eval mode, without gradients; the model's train or eval mode is restored."""

    def reference_metrics(self, model, examples: list[dict], tokenizer) -> dict[str, float]:
        """Reference metrics of doing nothing clever (`model` is the pretrained one); may be empty."""

    def about(self) -> dict[str, Any]:
        """source, licence, caveat, sizes and sha256 of the data, for the record."""
