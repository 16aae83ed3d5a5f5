"""Running text as windows of tokens: every token is predicted once, from what stands before it in its window."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from rowsft.batch import IGNORED


class Start(NamedTuple):
    """Tokens in front of the text. every: of each window (BOS, where a tokenizer puts it before texts). first: of the
    first window, so that the first token of all has something to be predicted from."""

    every: tuple[int, ...]
    first: tuple[int, ...]


class Window(NamedTuple):
    """Positions of a stream of tokens: read from `begin` on, predicted those from `first` to before `end`."""

    begin: int
    first: int
    end: int


def start_of(tokenizer) -> Start:
    """What the tokenizer puts before texts; else its BOS or EOS for the first window alone; else nothing."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is not None and tokenizer("a")["input_ids"][:1] == [bos]:
        return Start((bos,), (bos,))
    token = eos if bos is None else bos
    return Start((), () if token is None else (token,))


def cut(tokens: int, max_length: int, stride: int | None, start: Start) -> list[Window]:
    """Windows of at most `max_length` tokens, starts included, over a stream of `tokens`.

    A window predicts up to `stride` tokens that no earlier one has (None: as many as it can), the first window all of
    its own; what is left of a window's length is context. No token is predicted where nothing stands in front.
    """
    room = max_length - len(start.every)
    # Without a start of its own, a later window needs one token to predict the first one from.
    step = min(stride or room, room if start.every else room - 1)
    first, end = (0 if start.first else 1), min(tokens, max_length - len(start.first))
    windows = [Window(0, first, end)] if end > first else []
    while end < tokens:
        first, end = end, min(tokens, end + step)
        windows.append(Window(max(0, end - room), first, end))
    return windows


def encoded(window: Window, stream: Sequence[int], start: Start) -> dict[str, Any]:
    """input_ids of a window with its start, labels -100 on what it does not predict."""
    front = list(start.first if window.first == 0 else start.every)
    read = list(stream[window.begin : window.end])
    context = len(front) + window.first - window.begin
    return {"input_ids": front + read, "labels": [IGNORED] * context + read[window.first - window.begin :]}
