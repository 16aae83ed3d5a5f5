"""What every task shares: splits read once, cut to the limits, refused if empty; facts about the data."""

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any, Self

from rowsft import batch as batches
from rowsft.errors import UserError, shortened
from rowsft.store.token_cache import TokenCache
from rowsft.tasks import Size, Task
from rowsft.tasks.evaluating import run_batches
from rowsft.tasks.long_examples import checked, kept
from rowsft.tasks.splits import check_limits, limit
from rowsft.tasks.token_caching import kept as cached


class SplitTask(Task):
    """A task whose examples come from `_read`; subclasses add the head, the encoding and the evaluation."""

    evaluates_as_trained = True
    token_cache: TokenCache | None = None

    def __init__(
        self,
        name: str,
        max_length: int | None,
        limits: Mapping[str, int | None] | None = None,
        long_examples: str = "truncate",
    ):
        if not isinstance(name, str | int | float) or isinstance(name, bool) or not str(name).strip():
            raise UserError(f"task.name={shortened(name)}: expected a name")
        if max_length is not None:
            whole_number("task.max_length", max_length, 2, " tokens")
        self.name = str(name)
        self.max_length = max_length
        self.limits = check_limits(limits)
        self.long_examples = checked(long_examples)
        self._long: dict[str, int] = {}

    @abstractmethod
    def _read(self) -> dict[str, list[dict]]:
        """All examples of train, validation and test."""

    @abstractmethod
    def _facts(self) -> dict[str, Any]:
        """source, licence, caveat and sha256 of the data."""

    @staticmethod
    @abstractmethod
    def read_batch(output: Any, batch: dict[str, Any]) -> list:
        """What evaluation keeps of every example of a batch, from the model's output for it."""

    def head_settings(self, num_labels: int | None = None) -> dict[str, Any]:
        """Nothing: the head is as the checkpoint has it."""
        return {}

    def data_at_hand(self) -> bool:
        """True: the task reads no data of the user's."""
        return True

    def check_model(self, model, /) -> None:
        """Nothing: texts are checked by their length in tokens."""

    def may_encode_nothing(self, processor, /) -> bool:
        """False: every example has something that the model reads."""
        return False

    def encoding_settings(self) -> dict[str, Any] | None:
        """What `encode` and `too_long` read of the task, JSON-able; None where their results are not to be kept."""
        return None

    def keep_tokens(self, cache: TokenCache) -> None:
        """Have what is tokenised kept in `cache`, and read from there; nothing is kept before this is called."""
        self.token_cache = cache

    def kept_tokens(self, what: str, examples: list[dict], processor, make: Callable[[], list[dict]]) -> list[dict]:
        """What `make` encodes of these examples, from the cache where it is there.

        what: a name for it; with `encoding_settings` it says all that `make` depends on beside examples and processor.
        """
        return cached(self.token_cache, self, processor, examples, what, make)

    def size(self, encoded: dict) -> Size:
        """Its tokens, none of them an answer."""
        return Size(batches.tokens(encoded))

    def dry_evaluation(self, model, batch: dict[str, Any], times: int) -> None:
        """The pass of `run_batches` over `times` batches like `batch`."""
        count = len(batch["labels"])
        # Nothing is asked of the examples: the collator knows its batch.
        run_batches(model, [{}] * (count * times), lambda examples: dict(batch), count, None, self.read_batch)

    @cached_property
    def _splits(self) -> dict[str, list[dict]]:
        splits = limit(self._read(), self.limits)
        for name, examples in splits.items():
            if not examples:
                raise UserError(f"task {self.name}: the {name} split is empty; give it data or a larger share")
        return splits

    def splits(self) -> dict[str, list[dict]]:
        """train, validation and test, each a list of dicts with an `id`; read on the first call."""
        return self._splits

    def with_max_length(self, tokens: int) -> Self:
        """A copy of the task whose examples have at most so many tokens; it shares what was read."""
        other = copy.copy(self)
        other.max_length = tokens
        return other

    @property
    def _limit(self) -> str:
        """The most tokens of an example, as messages name it."""
        return f"task.max_length={self.max_length}"

    def too_long(self, examples: list[dict], processor, /) -> list[bool] | None:
        """Whether each example is longer than max_length tokens; None for a task that does not tell."""
        return None

    def limit_lengths(self, processor, names: Iterable[str], /) -> None:
        """Count the examples of these splits that are too long; drop or refuse them where `long_examples` says so."""
        for name in dict.fromkeys(names):
            examples = self.splits().get(name)
            if examples is None or name in self._long or (long := self._are_long(examples, processor)) is None:
                continue
            self._splits[name] = kept(examples, long, self.long_examples, name, self._limit)
            self._long[name] = sum(long)

    def _are_long(self, examples: list[dict], processor) -> list[bool] | None:
        """`too_long`, from the cache where it is there."""
        if type(self).too_long is SplitTask.too_long:
            return None

        def rows() -> list[dict]:
            return [{"long": int(is_long)} for is_long in self.too_long(examples, processor) or []]

        found = self.kept_tokens("too_long", examples, processor, rows)
        return [bool(row["long"]) for row in found] or None

    def about(self) -> dict[str, Any]:
        """source, licence, caveat, sizes (after the limits) and sha256 of the data; counts of what is too long."""
        # Read first: what reading counts is among the facts.
        sizes = {name: len(examples) for name, examples in self.splits().items()}
        facts = self._facts()
        if self._long:
            cut = "dropped" if self.long_examples == "drop" else "truncated"
            facts = {**facts, "counts": {**facts.get("counts", {}), f"long_examples_{cut}": dict(self._long)}}
        return {**facts, "sizes": sizes}


def whole_number(key: str, value: Any, least: int, unit: str = "") -> int:
    """`value` if it is a whole number from `least` on. Raises UserError naming `key`; true is no number."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{key}={shortened(value)}: expected a whole number, at least {least}{unit}")
    return value
