"""Every example of a split encoded once, whole: how long it is, and what it asks, as keys that can be compared.

The input of an example is what stands before its labelled tokens. Where nothing does, as in language modelling, or
where labels are no tokens, it is all that the model reads.
"""

import copy
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy import ndarray

from rowsft.batch import IGNORED
from rowsft.tasks import Progress, Task
from rowsft.tasks.base import SplitTask
from rowsft.tasks.inspection.normalise import normalised

# Longer than any text, and a number that tokenizers take.
_ENDLESS = 1 << 30
_AT_ONCE = 200
# From here on a second process pays for being started.
_MANY = 5000


@dataclass(frozen=True)
class Measure:
    """tokens (n,) and answers (n,), (0,) where there are none; a key of 16 bytes for each example's input, as the model
    reads it and after normalisation (empty where it is no text)."""

    tokens: ndarray
    answers: ndarray
    exact: list[bytes]
    normalised: list[bytes]


def measured(task: Task, processor: Any, examples: Sequence[dict], progress: Progress = None) -> Measure:
    """Encode `examples` without any limit of length; in several processes where there are many."""
    whole = _unlimited(task)
    chunks = [examples[first : first + _AT_ONCE] for first in range(0, len(examples), _AT_ONCE)]
    results = _in_processes(whole, processor, chunks) if len(examples) >= _MANY else _here(whole, processor, chunks)
    parts = list(progress(results, total=len(chunks)) if progress else results)
    return Measure(
        tokens=np.concatenate([part.tokens for part in parts]),
        answers=np.concatenate([part.answers for part in parts]),
        exact=[key for part in parts for key in part.exact],
        normalised=[key for part in parts for key in part.normalised],
    )


def _unlimited(task: Task) -> Task:
    if isinstance(task, SplitTask):
        return task.with_max_length(_ENDLESS)
    whole = copy.copy(task)
    if hasattr(whole, "max_length"):
        whole.max_length = _ENDLESS
    return whole


def _here(task: Task, processor: Any, chunks: list[Sequence[dict]]) -> Iterator[Measure]:
    for chunk in chunks:
        yield _measure(task, processor, chunk)


def _in_processes(task: Task, processor: Any, chunks: list[Sequence[dict]]) -> Iterator[Measure]:
    processors = len(os.sched_getaffinity(0))
    if processors < 2:
        yield from _here(task, processor, chunks)
        return
    _shared[:] = [task, processor, chunks]
    # Forked, a process has task and data without being sent them. A tokenizer's own threads do not survive that.
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        with ProcessPoolExecutor(processors, mp_context=multiprocessing.get_context("fork")) as pool:
            yield from pool.map(_measure_shared, range(len(chunks)))
    finally:
        _shared.clear()
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


# What forked processes find: task, processor, chunks.
_shared: list[Any] = []


def _measure_shared(index: int) -> Measure:
    task, processor, chunks = _shared
    return _measure(task, processor, chunks[index])


def _measure(task: Task, processor: Any, examples: Sequence[dict]) -> Measure:
    encoded = task.encode(list(examples), processor)
    sizes = [task.size(one) for one in encoded]
    answers = [size.answer for size in sizes if size.answer is not None]
    if encoded and "input_ids" in encoded[0]:
        exact, plain = _text_keys(processor, examples, encoded)
        tokens = [size.tokens for size in sizes]
    else:
        exact, plain, tokens, answers = [_content_key(one) for one in encoded], [], [], []
    return Measure(np.array(tokens, dtype=np.int64), np.array(answers, dtype=np.int64), exact, plain)


def _text_keys(tokenizer: Any, examples: Sequence[dict], encoded: list[dict]) -> tuple[list[bytes], list[bytes]]:
    special = set(tokenizer.all_special_ids)
    inputs = [_input(one, special) for one in encoded]
    decoded = tokenizer.batch_decode(inputs, skip_special_tokens=True)
    exact, plain = [], []
    for example, ids, text in zip(examples, inputs, decoded, strict=True):
        whole = " ".join(map(str, ids))
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
            # Different words read alike then.
            text = "\n".join(_texts({key: value for key, value in example.items() if key != "id"}))
            whole = f"{whole}\n{text}"
        exact.append(_digest(whole.encode(errors="surrogatepass")))
        # Of a text of punctuation alone nothing is left to compare.
        plain.append(_digest((normalised(text) or whole).encode(errors="surrogatepass")))
    return exact, plain


def _input(encoded: dict, special: set[int]) -> list[int]:
    ids, labels = encoded["input_ids"], encoded["labels"]
    if not isinstance(labels, list):
        return ids
    before = [token for token, label in zip(ids, labels, strict=True) if label == IGNORED]
    return before if set(before) - special else ids


def _texts(value: Any) -> Iterator[str]:
    """All texts inside of an example's values."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def _content_key(encoded: dict) -> bytes:
    """The bytes of all that the model reads of an example that is no text."""
    content = b"".join(np.asarray(encoded[name]).tobytes() for name in sorted(encoded) if name != "labels")
    return _digest(content)


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=16).digest()
