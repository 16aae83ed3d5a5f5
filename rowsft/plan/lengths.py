"""How long a plan's texts are: as stated, as the data have them where they are at hand, or as long as can be."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from rowsft.assets import fetch
from rowsft.batch import longest_first
from rowsft.config.instantiate import instantiated
from rowsft.errors import UserError
from rowsft.models.processor import processor_at_hand
from rowsft.plan.patching import patched
from rowsft.tasks import Size, Task

# Of more examples than that a plan tokenises the longest by their letters, and as many others evenly.
MOST_ENCODED = 10_000


@dataclass(frozen=True)
class Lengths:
    """Tokens of the examples that are planned. answer: those of them that are the response (None: any may be).

    source: "data", "stated" or "assumed". description: that in words. spread: of data, the tokens at p50, p95 and max.
    evaluated: tokens and answer of the examples that are evaluated. alike: whether the examples of training, and of
    evaluation, are known to be equally long, so that no batch of them has padding.
    """

    tokens: int
    answer: int | None
    source: str
    description: str
    evaluated: Size
    spread: dict[str, dict[str, int]] = field(default_factory=dict)
    alike: tuple[bool, bool] = (False, False)

    def at(self, tokens: int, answer: int | None = None) -> "Lengths":
        """The same for training examples of another length; without `answer` as much of it is the response."""
        kept = self.answer if answer is None else answer
        return replace(self, tokens=tokens, answer=None if kept is None else min(kept, tokens - 1))


def assumed(task: Task, why: str = "") -> Lengths:
    """Every example as long as `task.max_length` allows. why: that the data were not taken."""
    if task.max_length is None:
        return _ALIKE
    longest = task.max_length
    description = f"every example has task.max_length={longest} tokens{f' ({why})' if why else ''}"
    return Lengths(longest, None, "assumed", description, Size(longest))


def stated(task: Task, tokens: int | None, answer: int | None) -> Lengths:
    """As the user says: tokens of an example, and how many of them at the end are the response.

    Raises UserError for numbers that no example of the task can have.
    """
    longest = task.max_length
    if longest is None:
        raise UserError(f"--length {tokens}: the examples of task={task.name} are no texts; leave it out")
    if tokens is not None and not 2 <= tokens <= longest:
        raise UserError(f"--length {tokens}: expected 2 to task.max_length={longest} tokens")
    tokens = tokens or longest
    if answer is not None and not task.head.answers:
        raise UserError(f"--answer {answer}: task={task.name} has labels and no answers; leave it out")
    if answer is not None and not 1 <= answer < tokens:
        raise UserError(f"--answer {answer}: expected 1 to {tokens - 1} of an example's {tokens} tokens")
    of_it = f", {answer} of them its response" if answer else ""
    return Lengths(
        tokens, answer, "stated", f"every example has {tokens} tokens{of_it}, as stated", Size(tokens, answer)
    )


def of_data(config: DictConfig) -> Lengths:
    """As the task's own examples are, encoded as a run encodes them; as long as can be where data or tokenizer would
    have to be fetched. Reads no weights and no network. Raises UserError for data that a run refuses, and for a damaged
    tokenizer.
    """
    task = instantiated("task", config.task, Task)
    if task.max_length is None:
        return _ALIKE
    # First of all what costs nothing to see.
    if not task.data_at_hand():
        return assumed(task, "its data are not at hand")
    try:
        with patched(fetch, fetch=_fetched, ensure=_fetched):
            processor = processor_at_hand(config.model, task.head)
            if processor is None:
                return assumed(task, "the tokenizer is not at hand")
            task.limit_lengths(processor, ["train", *config.trainer.evaluate])
            splits = task.splits()
    except _NotFetched as error:
        return assumed(task, str(error))
    train = _sizes(task, splits["train"], processor)
    spread = {"tokens": _spread([size.tokens for size in train])}
    longest, lengths_text = spread["tokens"]["max"], _shares(spread["tokens"])
    text = f"the longest of {len(splits['train']):,} training examples has {longest} tokens ({lengths_text})"
    answers = [size.answer for size in train if size.answer is not None]
    if answers:
        spread["answer"] = _spread(answers)
        text += f"; the longest response {max(answers)} ({_shares(spread['answer'])})"
    continues = train[0].prompt is not None
    evaluated, evaluated_alike = _evaluated(task, config.trainer.evaluate, splits, processor, continues)
    alike = len({size.tokens for size in train}) == 1, evaluated_alike
    return Lengths(longest, max(answers, default=None), "data", text, evaluated, spread, alike)


def _evaluated(task: Task, names: Sequence[str], splits: dict, processor: Any, continues: bool) -> tuple[Size, bool]:
    """The longest example that is evaluated, the longest response and the longest prompt that is continued; of the
    first two the most where a task reads others than it trains on, as one with several answers to a question does.
    And whether all are equally long."""
    most = None if task.evaluates_as_trained else task.max_length
    if most is not None and not continues:
        return Size(most), False
    names = [name for name in names if name in splits] or ["train"]
    sizes = [size for name in names for size in _sizes(task, splits[name], processor)]
    tokens = [size.tokens for size in sizes]
    answer = max((size.answer for size in sizes if size.answer is not None), default=None)
    prompt = max((size.prompt for size in sizes if size.prompt is not None), default=None)
    if most is not None:
        return Size(most, None, prompt), False
    return Size(max(tokens), answer, prompt), min(tokens) == max(tokens)


def _sizes(task: Task, examples: list[dict], processor: Any) -> list[Size]:
    if len(examples) > MOST_ENCODED:
        step = -(-len(examples) // MOST_ENCODED)
        examples = [*examples[::step], *longest_first(examples)[: MOST_ENCODED // 20]]
    return [task.size(encoded) for encoded in task.encode(examples, processor)]


def _spread(counts: Sequence[int]) -> dict[str, int]:
    ordered = sorted(counts)
    return {name: ordered[math.ceil(share * len(ordered)) - 1] for name, share in _SHARES.items()}


def _shares(spread: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in spread.items())


#: Examples that are no texts.
_ALIKE = Lengths(1, None, "alike", "every example costs the same", Size(1), alike=(True, True))
_SHARES = {"p50": 0.5, "p95": 0.95, "max": 1.0}


class _NotFetched(Exception):
    """A packaged asset is not here, and a plan fetches nothing."""


def _fetched(key: str, progress: bool = True) -> Path:
    """The folder of a packaged asset that was fetched before."""
    folder = fetch.cache_folder() / fetch.get(key).key
    if not (folder / fetch.MANIFEST).is_file():
        raise _NotFetched(f"package:{key} is not fetched")
    return folder
