"""Examples as a model reads them: tokens as pieces of text, each with whether it carries loss and is a special one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rowsft.batch import IGNORED
from rowsft.tasks import Task
from rowsft.tasks.inspection.labels import label_name

# What a decoder gives for bytes that are no whole character yet.
_UNFINISHED = "\ufffd"


@dataclass(frozen=True)
class Piece:
    """The text of one token, or of several that make up one character. loss: whether it is to be predicted."""

    text: str
    special: bool = False
    loss: bool = False


@dataclass(frozen=True)
class Rendered:
    """One training example. label: where it is no text (None otherwise). tokens, loss_tokens: how many there are.

    inputs: of an example that is no text, name -> shape.
    """

    id: str
    label: str | None
    tokens: int | None
    loss_tokens: int | None
    pieces: list[Piece]
    inputs: dict[str, list[int]]


def rendered(task: Task, processor: Any, examples: Sequence[dict], classes: Sequence[str] | None) -> list[Rendered]:
    """Return the examples as training reads them, what is too long cut off."""
    # Some tokenizers fail on no texts at all.
    encoded = task.encode(list(examples), processor) if examples else []
    return [_rendered(processor, *pair, classes) for pair in zip(examples, encoded, strict=True)]


def _rendered(processor: Any, example: dict, encoded: dict, classes: Sequence[str] | None) -> Rendered:
    labels = encoded["labels"]
    in_tokens = isinstance(labels, list)
    label = None if in_tokens else label_name(labels, classes)
    if "input_ids" not in encoded:
        shapes = {name: list(np.shape(value)) for name, value in encoded.items() if name != "labels"}
        return Rendered(example["id"], label, None, None, [], shapes)
    ids = encoded["input_ids"]
    loss = [one != IGNORED for one in labels] if in_tokens else [False] * len(ids)
    pieces = list(pieces_of(processor, ids, loss))
    return Rendered(example["id"], label, len(ids), sum(loss) if in_tokens else None, pieces, {})


def pieces_of(tokenizer: Any, ids: Sequence[int], loss: Sequence[bool]) -> Iterator[Piece]:
    """Yield the text of every token as it stands behind the ones before it: with its blanks, of whole characters.

    A decoder may drop a blank at the start of what it is given, so each token is decoded with the piece before it.
    """
    special = set(tokenizer.all_special_ids)
    previous: list[int] = []
    pending: list[int] = []
    for index, token in enumerate(ids):
        if token in special:
            yield from _piece(tokenizer, previous, pending, loss[index - 1])
            yield Piece(str(tokenizer.convert_ids_to_tokens(token)), special=True, loss=loss[index])
            previous, pending = [token], []
            continue
        if pending and loss[index] != loss[index - 1]:
            yield from _piece(tokenizer, previous, pending, loss[index - 1])
            previous, pending = pending, []
        pending = [*pending, token]
        text = _behind(tokenizer, previous, pending)
        if not text.endswith(_UNFINISHED):
            yield Piece(text, loss=loss[index])
            previous, pending = pending, []
    yield from _piece(tokenizer, previous, pending, loss[-1] if loss else False)


def _piece(tokenizer: Any, previous: list[int], pending: list[int], loss: bool) -> Iterator[Piece]:
    if pending:
        yield Piece(_behind(tokenizer, previous, pending), loss=loss)


def _behind(tokenizer: Any, previous: list[int], pending: list[int]) -> str:
    """What `pending` adds to the text of `previous`."""
    before = tokenizer.decode(previous, clean_up_tokenization_spaces=False)
    whole = tokenizer.decode([*previous, *pending], clean_up_tokenization_spaces=False)
    if whole.startswith(before) and not before.endswith(_UNFINISHED):
        return whole[len(before) :]
    return tokenizer.decode(pending, clean_up_tokenization_spaces=False)
