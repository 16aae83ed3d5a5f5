"""Data sets as tasks: splits, encoded examples, batches, evaluation. One file a task; adding one edits nothing else.

May import assets and the store's file helpers. Must not know methods, or models beyond their configuration.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from rowsft.tasks.heads import Head

# Wraps an iterable to show progress: wrap(items, total=None). None shows nothing.
Progress = Callable[..., Iterable] | None


@dataclass(frozen=True)
class Evaluation:
    """`metrics`: name -> number over all examples. `predictions`: one JSON-able dict an example, in the order given."""

    metrics: dict[str, float]
    predictions: list[dict[str, Any]] = field(default_factory=list)


class Size(NamedTuple):
    """Tokens of an encoded example. answer: those from its first labelled one on; None where labels are no tokens.
    prompt: those that evaluation has the model continue; None where it continues nothing, or the longest is not known.
    """

    tokens: int
    answer: int | None = None
    prompt: int | None = None


class Task(Protocol):
    """All that runs and plans ask of a task. Building one reads no data; `splits` does, once.

    max_length: the most tokens of an example; None where examples are no texts and all cost the same.
    evaluates_as_trained: evaluation reads the sequences that `encode` gives; False where it reads others, such as every
    option of a question.
    A processor is what `head.processor_class` makes: a tokenizer for texts.
    Choose on train, tune on validation, report on test.
    """

    name: str
    head: Head
    max_length: int | None
    primary_metric: str
    higher_is_better: bool
    evaluates_as_trained: bool

    @abstractmethod
    def head_settings(self, num_labels: int | None = None) -> dict[str, Any]:
        """What the model's configuration is told of its head, such as num_labels.

        num_labels: stands for the data's own, which are not read then. Raises UserError for data that are refused.
        """

    @abstractmethod
    def data_at_hand(self) -> bool:
        """Whether the user's own data, where the task reads any, can be read without a network."""

    @abstractmethod
    def splits(self) -> dict[str, list[dict]]:
        """train, validation and test as lists of plain dicts, each with an `id` that no change of settings alters."""

    @abstractmethod
    def limit_lengths(self, processor: Any, names: Iterable[str], /) -> None:
        """Called once before these splits are used: see to examples longer than max_length, and count them."""

    @abstractmethod
    def check_model(self, model: Any, /) -> None:
        """Raise UserError for a model that cannot take the task's examples, for more than their length in tokens."""

    @abstractmethod
    def encode(self, examples: list[dict], processor: Any, /) -> list[dict]:
        """One training example each: what the model takes, unpadded (of texts input_ids, list of int), and labels."""

    @abstractmethod
    def may_encode_nothing(self, processor: Any, /) -> bool:
        """Whether an example can come out of `encode` or of evaluation without any token."""

    @abstractmethod
    def size(self, encoded: dict) -> Size:
        """What an encoded example costs."""

    @abstractmethod
    def evaluated_sizes(self, examples: list[dict], processor: Any, /) -> list[Size]:
        """What the sequences cost that evaluation reads of examples, one or several of each."""

    @abstractmethod
    def collator(self, processor: Any, model: Any = None, /) -> Callable[[list[dict]], dict[str, Any]]:
        """A function from encoded examples to a batch that model.forward accepts.

        Entries are tensors with the batch first, except `logits_to_keep` (int) of language models. `model` is needed
        only for a language model whose forward takes no logits_to_keep.
        """

    @abstractmethod
    def dummy_batch(self, model: Any, count: int, size: Size, empty: Callable[..., Any]) -> dict[str, Any]:
        """What the collator makes for `model` of `count` examples of that size (answer None: any token may be of it),
        its tensors without data from empty(shape, dtype=int64)."""

    @abstractmethod
    def evaluate(
        self, model: Any, examples: list[dict], processor: Any, /, batch_size: int, progress: Progress = None
    ) -> Evaluation:
        """Metrics and predictions in eval mode, without gradients; the model's train or eval mode is restored."""

    @abstractmethod
    def dry_evaluation(self, model: Any, batch: dict[str, Any], times: int) -> None:
        """Compute what `evaluate` computes on `times` batches like `batch`, a dummy one."""

    @abstractmethod
    def reference_metrics(self, model: Any, examples: list[dict], processor: Any, /) -> dict[str, float]:
        """Reference metrics of doing nothing clever (`model` is the pretrained one); may be empty."""

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """source, licence, caveat, sizes and sha256 of the data, for the record; also `warnings`, one line each, and
        `classes`, the label of every class index, where there are any."""
