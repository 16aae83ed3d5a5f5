"""Prompts and answers for a causal language model: encoding, left padding, the likelihood of answers.

Batches are padded on the left, so that the answers end together: logits are then computed at the last K positions
alone (`logits_to_keep` = K), which saves most of a large vocabulary's cost. The loss stays transformers' own, shifted
inside the model: labels of the last K positions against logits of the last K positions, the first of which is always a
prompt token without label. `position_ids` count the tokens that are not padding, so that padding changes nothing.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

from rowsft.batch import IGNORED
from rowsft.tasks import Progress, Size, shared_prompt
from rowsft.tasks.answer_score import AnswerScore, read_scores
from rowsft.tasks.base import SplitTask
from rowsft.tasks.evaluating import run_batches
from rowsft.tasks.heads import CAUSAL_LM

# Texts tokenised at once: what a tokenizer returns of them takes many times the memory of what is kept.
_AT_ONCE = 1000


class CausalTask(SplitTask):
    """A task of prompts and answers; subclasses encode them by `encode_answers` and make metrics of `score_answers`."""

    head = CAUSAL_LM
    max_length: int
    #: Whether evaluation scores several answers to each prompt.
    shares_prompts = False

    def may_encode_nothing(self, tokenizer, /) -> bool:
        """Whether an example without tokens stays without: neither BOS nor EOS is there to be put before an answer."""
        return tokenizer.bos_token_id is None and tokenizer.eos_token_id is None

    def size(self, encoded: dict) -> Size:
        """Tokens of prompt and answer, and those of the answer."""
        return Size(len(encoded["input_ids"]), _answer_length(encoded["labels"]))

    def collator(self, tokenizer, model=None, /) -> Callable[[list[dict]], dict[str, Any]]:
        """`collate_left`; full labels where `model` is given and its forward takes no logits_to_keep."""
        keep = model is None or takes_logits_to_keep(model)
        return lambda encoded: collate_left(encoded, tokenizer.pad_token_id, keep)

    def dummy_batch(self, model, count: int, size: Size, empty: Callable[..., torch.Tensor]) -> dict[str, Any]:
        """The collator's entries; labels are a view of the last K positions."""
        names = ("input_ids", "attention_mask", "position_ids", "labels")
        batch = {name: empty((count, size.tokens)) for name in names}
        if size.answer is None or not takes_logits_to_keep(model):
            return batch
        keep = size.answer + 1
        return {**batch, "labels": batch["labels"][:, -keep:], "logits_to_keep": keep}

    def dry_evaluation(self, model, batch: dict[str, Any], times: int) -> None:
        """The passes of `score_answers` over `times` batches like `batch`."""
        super().dry_evaluation(model, batch, times)
        if self.shares_prompts and shared_prompt.keeps_rows(model):
            ids = batch["input_ids"]
            shared_prompt.dry_score(model, ids, batch.get("logits_to_keep", ids.shape[1]) - 1, times)

    @staticmethod
    def read_batch(output, batch: dict[str, Any]) -> list[AnswerScore]:
        """The score of every answer of a batch."""
        return read_scores(output.logits[:, :-1], batch["labels"][:, 1:])

    def score_answers(
        self, model, encoded: list[dict], tokenizer, batch_size: int, progress: Progress = None
    ) -> list[AnswerScore]:
        """The score of every encoded answer (its labelled tokens), computed in float32, in the order given.

        Answers to the same prompt share one pass over it where the model keeps a cache (see shared_prompt.py).
        """
        if shared_prompt.pays(model, encoded):
            pad = tokenizer.pad_token_id
            return shared_prompt.score(model, encoded, pad, batch_size, self.max_length, progress)
        return run_batches(model, encoded, self.collator(tokenizer, model), batch_size, progress, self.read_batch)


def encode_answers(
    tokenizer,
    prompts: Sequence[str],
    answers: Sequence[str],
    max_length: int,
    end: bool,
    reserved: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """Of every prompt with its answer: input_ids, and labels of -100 on the prompt.

    `end` appends the end-of-sequence token to the answers. `response_bytes` is an answer's length in bytes of UTF-8, of
    what is left of it where it was cut.

    Prompt and answer are tokenised apart, so that no token spans the boundary. What exceeds `max_length` tokens is cut
    from the start of the prompt, then from the end of the answer; at least one token stays before the answer. A prompt
    leaves as many tokens as its answer has, or `reserved` says, if that is more.
    """
    befores = _prompts_ids(tokenizer, prompts)
    afters = _token_ids(tokenizer, _without_second_space(tokenizer, answers), add_special_tokens=False)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    encoded = []
    for before, answer, after, least in zip(befores, answers, afters, reserved or [0] * len(befores), strict=True):
        size = len(answer.encode(errors="surrogatepass"))
        if len(after) > max_length - 1:
            left = tokenizer.decode(after[: max_length - 1], clean_up_tokenization_spaces=False)
            size = min(size, len(left.encode(errors="surrogatepass")))
        if end and eos is not None:
            after = [*after, eos]
        after = after[: max_length - 1]
        kept, _ = _without_start(before, max_length - max(len(after), min(least, max_length - 1)), bos)
        labels = [IGNORED] * len(kept) + after
        encoded.append({"input_ids": kept + after, "labels": labels, "response_bytes": size})
    return encoded


def answer_lengths(tokenizer, answers: Sequence[str]) -> list[int]:
    """Tokens of every answer as `encode_answers` has it, uncut and without an end-of-sequence token."""
    return list(map(len, _token_ids(tokenizer, _without_second_space(tokenizer, answers), add_special_tokens=False)))


def encode_prompts(tokenizer, prompts: Sequence[str], room: int) -> list[tuple[list[int], int]]:
    """Every prompt's tokens as an answer follows them, and how many were cut from its start to leave at most `room`."""
    bos = tokenizer.bos_token_id
    return [_without_start(ids, room, bos) for ids in _prompts_ids(tokenizer, prompts)]


def _without_start(ids: list[int], room: int, bos: int | None) -> tuple[list[int], int]:
    excess = max(0, len(ids) - room)
    if excess:
        # A prompt that starts with BOS keeps it: models rely on it.
        start = ids[: min(room - 1, int(ids[0] == bos))]
        ids = start + ids[excess + len(start) :]
    return ids, excess


def _prompts_ids(tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """The prompts with the tokens that the tokenizer puts in front (BOS), without any that it puts at the end."""
    bos, eos, ends = tokenizer.bos_token_id, tokenizer.eos_token_id, (tokenizer.eos_token_id, tokenizer.sep_token_id)
    # Something must stand before an answer for its first token to be predicted from.
    start = bos if bos is not None else eos
    found = []
    for ids in _token_ids(tokenizer, prompts):
        while len(ids) > 1 and ids[-1] in ends:
            ids = ids[:-1]
        found.append(ids or [start])
    return found


def _token_ids(tokenizer, texts: Sequence[str], **options: Any) -> list[list[int]]:
    """The tokens of every text; equal texts, such as the prompt of several options, are tokenised once."""
    unique = list(dict.fromkeys(texts))
    ids: dict[str, list[int]] = {}
    for first in range(0, len(unique), _AT_ONCE):
        some = unique[first : first + _AT_ONCE]
        out = tokenizer(some, return_attention_mask=False, verbose=False, **options)["input_ids"]
        ids |= zip(some, out, strict=True)
    return [ids[text] for text in texts]


def _without_second_space(tokenizer, answers: Sequence[str]) -> Sequence[str]:
    """The answers as they are tokenised: a space that the tokenizer puts in front itself would be there twice."""
    if not tokenizer.tokenize("a"):
        # A tokenizer of another script: every answer is asked.
        return [
            answer.removeprefix(" ") if starts_words_with_a_space(tokenizer, answer) else answer for answer in answers
        ]
    if not starts_words_with_a_space(tokenizer, "a"):
        return answers
    return [answer.removeprefix(" ") for answer in answers]


def starts_words_with_a_space(tokenizer, answer: str) -> bool:
    """Whether this is a SentencePiece-like tokenizer that adds a space in front of any text (Llama-2, Mistral)."""
    # A tokenizer of another script may know no "a".
    tokens = tokenizer.tokenize("a") or tokenizer.tokenize(answer.removeprefix(" "))
    return bool(tokens) and tokens[0].startswith("\u2581")


def collate_left(encoded: list[dict], pad_id: int, keep_logits: bool) -> dict[str, Any]:
    """input_ids, attention_mask, position_ids (batch, length); labels (batch, K) and logits_to_keep K if `keep_logits`.

    K is the longest answer plus one. Without `keep_logits` labels are (batch, length) and logits_to_keep is absent.
    """
    length = max(len(example["input_ids"]) for example in encoded)
    mask = torch.tensor([_left(0, [1] * len(example["input_ids"]), length) for example in encoded])
    labels = torch.tensor([_left(IGNORED, example["labels"], length) for example in encoded])
    batch = {
        "input_ids": torch.tensor([_left(pad_id, example["input_ids"], length) for example in encoded]),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0),
    }
    if not keep_logits:
        return {**batch, "labels": labels}
    keep = 1 + max(_answer_length(example["labels"]) for example in encoded)
    return {**batch, "labels": labels[:, -keep:], "logits_to_keep": keep}


def _left(value: int, row: list[int], length: int) -> list[int]:
    return [value] * (length - len(row)) + row


def _answer_length(labels: list[int]) -> int:
    """Tokens from the first labelled one to the end."""
    return next((len(labels) - i for i, label in enumerate(labels) if label != IGNORED), 0)


def takes_logits_to_keep(model) -> bool:
    """Whether the model under any PEFT wrapper has a forward that names `logits_to_keep`."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    # Of the class: autocast puts another function in the place of the instance's own.
    return "logits_to_keep" in inspect.signature(type(base).forward).parameters
