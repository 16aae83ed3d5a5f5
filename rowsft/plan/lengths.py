"""How long a plan's texts are: as stated, as the data have them where they are at hand, or as long as can be."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from rowsft.assets import fetch
from rowsft.config.instantiate import instantiated
from rowsft.errors import UserError
from rowsft.plan.patching import patched
from rowsft.tasks import Task
from rowsft.tasks.answer_score import IGNORE

# Of more examples than that a plan tokenises the longest by their letters, and as many others evenly.
MOST_ENCODED = 10_000


class NotAtHand(Exception):
    """What a plan would have to fetch first."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of the examples that are planned. answer: those of them that are the response (None: any may be).

    source: "data", "stated" or "assumed". said: that in words. spread: of data, the tokens at p50, p95 and max.
    evaluated: tokens and answer of the examples that are evaluated. alike: whether the examples of training, and of
    evaluation, are known to be equally long, so that no batch of them has padding.
    """

    tokens: int
    answer: int | None
    source: str
    said: str
    evaluated: tuple[int, int | None]
    spread: dict[str, dict[str, int]] = field(default_factory=dict)
    alike: tuple[bool, bool] = (False, False)

    def at(self, tokens: int, answer: int | None = None) -> "Lengths":
        """The same for training examples of another length; without `answer` as much of it is the response."""
        kept = self.answer if answer is None else answer
        return replace(self, tokens=tokens, answer=None if kept is None else min(kept, tokens - 1))


def assumed(task: Task, why: str = "") -> Lengths:
    """Every example as long as `task.max_length` allows. why: that the data were not taken."""
    longest = task.max_length
    said = f"every example has task.max_length={longest} tokens{f' ({why})' if why else ''}"
    return Lengths(longest, None, "assumed", said, (longest, None))


def stated(task: Task, tokens: int | None, answer: int | None) -> Lengths:
    """As the user says: tokens of an example, and how many of them at the end are the response.

    Raises UserError for numbers that no example of the task can have.
    """
    longest = task.max_length
    if tokens is not None and not 2 <= tokens <= longest:
        raise UserError(f"--length {tokens}: expected 2 to task.max_length={longest} tokens")
    tokens = tokens or longest
    if answer is not None and task.head != "causal_lm":
        raise UserError(f"--answer {answer}: task={task.name} has labels and no answers; leave it out")
    if answer is not None and not 1 <= answer < tokens:
        raise UserError(f"--answer {answer}: expected 1 to {tokens - 1} of an example's {tokens} tokens")
    of_it = f", {answer} of them its response" if answer else ""
    return Lengths(tokens, answer, "stated", f"every example has {tokens} tokens{of_it}, as stated", (tokens, answer))


def of_data(config: DictConfig) -> Lengths:
    """As the task's own examples are, encoded as a run encodes them; as long as can be where data or tokenizer would
    have to be fetched. Reads no weights and no network. Raises UserError for data that a run refuses.
    """
    task = instantiated("task", config.task, Task)
    try:
        # First of all what costs nothing to see.
        _look_for_files(task)
        tokenizer = _tokenizer(config.model)
        with patched(fetch, fetch=_here, ensure=_here):
            splits = task.splits()
    except NotAtHand as error:
        return assumed(task, str(error))
    train = [_sizes(example) for example in _encoded(task, splits["train"], tokenizer)]
    spread = {"tokens": _spread([tokens for tokens, _ in train])}
    if task.head == "causal_lm":
        spread["answer"] = _spread([answer for _, answer in train])
    tokens, answer = spread["tokens"]["max"], spread.get("answer", {}).get("max")
    counts = ", ".join(f"{name} {count}" for name, count in spread["tokens"].items())
    said = f"the longest of {len(splits['train']):,} training examples has {tokens} tokens ({counts})"
    if answer is not None:
        counts = ", ".join(f"{name} {count}" for name, count in spread["answer"].items())
        said += f"; the longest response {answer} ({counts})"
    evaluated, evaluated_alike = _evaluated(config, task, splits, tokenizer)
    alike = min(tokens for tokens, _ in train) == tokens, evaluated_alike
    return Lengths(tokens, answer, "data", said, evaluated, spread, alike)


def _evaluated(config: DictConfig, task: Task, splits: dict, tokenizer) -> tuple[tuple[int, int | None], bool]:
    """Tokens and response of the longest example that is evaluated; the most where a task reads others than it trains
    on, as one with several answers to a question does. And whether all are equally long."""
    if task.head == "causal_lm" and config.task.get("response") is None:
        return (task.max_length, None), False
    names = [name for name in config.trainer.evaluate if name in splits] or ["train"]
    sizes = [_sizes(row) for name in names for row in _encoded(task, splits[name], tokenizer)]
    answer = max(answer for _, answer in sizes) if task.head == "causal_lm" else None
    tokens = [tokens for tokens, _ in sizes]
    return (max(tokens), answer), min(tokens) == max(tokens)


def _sizes(encoded: dict) -> tuple[int, int]:
    """Tokens of an encoded example, and those from its first labelled one to its end."""
    labels = encoded.get("labels")
    labels = labels if isinstance(labels, list) else []
    return len(encoded["input_ids"]), next((len(labels) - i for i, label in enumerate(labels) if label != IGNORE), 0)


def _spread(counts: Sequence[int]) -> dict[str, int]:
    ordered = sorted(counts)
    return {name: ordered[math.ceil(share * len(ordered)) - 1] for name, share in _SHARES.items()}


_SHARES = {"p50": 0.5, "p95": 0.95, "max": 1.0}


def _encoded(task: Task, examples: list[dict], tokenizer) -> list[dict]:
    if len(examples) > MOST_ENCODED:
        longest = sorted(examples, key=lambda example: -len(str(example)))[: MOST_ENCODED // 20]
        step = -(-len(examples) // MOST_ENCODED)
        examples = [*examples[::step], *longest]
    return task.encode(examples, tokenizer)


def _tokenizer(model_cfg: DictConfig) -> Any:
    # It takes a second that a plan without data need not spend.
    from transformers import AutoTokenizer

    source = str(model_cfg.source)
    place = str(_here(source.removeprefix("package:"))) if source.startswith("package:") else source
    folder = Path(place).expanduser()
    options = {} if folder.is_dir() else {"revision": model_cfg.get("revision") or "main"}
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder) if folder.is_dir() else place,
            local_files_only=True,
            trust_remote_code=bool(model_cfg.get("trust_remote_code", False)),
            **options,
        )
    except Exception as error:
        raise NotAtHand("the tokenizer is not at hand") from error
    if len(tokenizer) <= len(set(tokenizer.all_special_tokens)):
        raise NotAtHand("the tokenizer's files are not at hand")
    return tokenizer


def _look_for_files(task: Task) -> None:
    """Raise NotAtHand for a task of the user's own data whose files are not here."""
    tables = getattr(task, "tables", None)
    if tables is not None:
        given = [tables.data.get(key) for key in ("path", "train_path", "validation_path", "test_path")]
        paths = [Path(str(path)).expanduser() for path in given if path]
        if not paths or not all(path.exists() for path in paths):
            raise NotAtHand("its data are not at hand")


def _here(key: str, progress: bool = True) -> Path:
    """The folder of a packaged asset that was fetched before."""
    folder = fetch.cache_folder() / fetch.get(key).key
    if not (folder / fetch.MANIFEST).is_file():
        raise NotAtHand(f"package:{key} is not fetched")
    return folder
