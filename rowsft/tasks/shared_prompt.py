"""Answers to the same prompt, scored with one pass over the prompt: its keys and values are kept and reused.

A multiple-choice item repeats its prompt for every option, and the prompt is most of its tokens.
"""

import inspect
from typing import Any

import torch
from torch import Tensor

from rowsft.batch import IGNORED
from rowsft.compat.transformers import keeps_state
from rowsft.tasks import Progress
from rowsft.tasks.answer_score import AnswerScore, summed, token_scores
from rowsft.tasks.evaluating import evaluation_mode

Group = tuple[tuple[int, ...], list[int]]


def pays(model, encoded: list[dict]) -> bool:
    """Whether a prompt has more than one answer, and the model is one that they can share it in."""
    return keeps_rows(model) and len(_by_prompt(encoded)) < len(encoded)


def keeps_rows(model) -> bool:
    """Whether the model keeps a cache whose rows can be picked (not Mamba's)."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    # Of the class: autocast puts another function in the place of the instance's own.
    takes = inspect.signature(type(base).forward).parameters
    return {"past_key_values", "logits_to_keep"} <= set(takes) and not keeps_state(base)


def score(
    model, encoded: list[dict], pad_id: int, batch_size: int, max_length: int, progress: Progress = None
) -> list[AnswerScore]:
    """The score of every encoded answer, in the order given. A batch holds up to `batch_size` answers: a prompt of more
    is read once for each batch of them. With its padding it is no longer than `max_length`, as no example is.

    `encoded`: input_ids with labels that are -100 on the prompt (the answer is one run of labels at the end). The model
    takes `logits_to_keep`.
    """
    lengths = [len(example["input_ids"]) for example in encoded]
    batches = _batches(_by_prompt(encoded), lengths, batch_size, max_length)
    results: list[Any] = [None] * len(encoded)
    with evaluation_mode(model) as device:
        for groups in progress(batches, total=len(batches)) if progress else batches:
            members = [index for _, indices in groups for index in indices]
            answers = [[label for label in encoded[index]["labels"] if label != IGNORED] for index in members]
            scores = _score_batch(model, groups, answers, pad_id, device)
            for index, result in zip(members, scores, strict=True):
                results[index] = result
    return results


def dry_score(model, ids: Tensor, answer: int, times: int) -> None:
    """Compute what `score` computes on `times` batches of as many answers as `ids` (answers, length) has rows, each of
    `answer` tokens after a prompt of its own: no other batch of their length holds more.

    ids: may be without data.
    """
    count, prompt = len(ids), ids.shape[1] - answer
    prompts, inputs = ids.new_ones((count, prompt)), ids.new_ones((count, answer - 1))
    targets, owner = ids.new_ones((count, answer)), ids.new_zeros(count)
    with evaluation_mode(model):
        for _ in range(times):
            _two_passes(model, prompts, torch.ones_like(prompts), owner, inputs, torch.ones_like(inputs), targets)


def _score_batch(model, groups: list[Group], answers: list[list[int]], pad_id: int, device) -> list[AnswerScore]:
    prompts, mask = _padded([list(prompt) for prompt, _ in groups], pad_id, left=True, device=device)
    owner = torch.tensor([i for i, (_, indices) in enumerate(groups) for _ in indices], device=device)
    targets, _ = _padded(answers, IGNORED, left=False, device=device)
    # The last token of an answer predicts nothing, so it is never read.
    inputs, inputs_mask = _padded([answer[:-1] for answer in answers], pad_id, left=False, device=device)
    return _two_passes(model, prompts, mask, owner, inputs, inputs_mask, targets)


def _two_passes(
    model, prompts: Tensor, mask: Tensor, owner: Tensor, inputs: Tensor, inputs_mask: Tensor, targets: Tensor
) -> list[AnswerScore]:
    """Scores of answers, `targets` (answers, length), behind the prompts that `owner` (answers,) numbers.

    prompts, mask: padded on the left; inputs, inputs_mask: the answers but for their last tokens, padded on the right.
    """
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    head = model(input_ids=prompts, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
    # One pass's logits at a time, and none beside the keys and values that only passes need.
    parts = [token_scores(head.logits[:, -1:].index_select(0, owner), targets[:, :1])]
    cache = head.past_key_values
    del head
    if targets.shape[1] > 1:
        cache.batch_select_indices(owner)
        start = mask.sum(dim=1).index_select(0, owner).unsqueeze(1)
        logits = model(
            input_ids=inputs,
            attention_mask=torch.cat([mask.index_select(0, owner), inputs_mask], dim=1),
            position_ids=start + torch.arange(inputs.shape[1], device=inputs.device),
            past_key_values=cache,
            use_cache=True,
        ).logits
        del cache
        parts.append(token_scores(logits, targets[:, 1:]))
    log_probabilities, matches = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
    return summed(log_probabilities, matches, targets)


def _by_prompt(encoded: list[dict]) -> dict[tuple[int, ...], list[int]]:
    """The prompt's tokens -> indices of its answers."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, example in enumerate(encoded):
        prompt = tuple(
            token for token, label in zip(example["input_ids"], example["labels"], strict=True) if label == IGNORED
        )
        groups.setdefault(prompt, []).append(index)
    return groups


def _batches(
    groups: dict[tuple[int, ...], list[int]], lengths: list[int], batch_size: int, max_length: int
) -> list[list[Group]]:
    """Prompts of similar length together, longest first: little padding, the memory peak early.

    lengths: tokens of every prompt with its answer. The longest prompt of a batch and its longest answer may be those
    of two examples.
    """
    batches: list[list[Group]] = []
    room = longest = 0
    for prompt, indices in sorted(groups.items(), key=lambda group: -len(group[0])):
        for first in range(0, len(indices), batch_size):
            some = indices[first : first + batch_size]
            answer = max(lengths[index] for index in some) - len(prompt)
            if len(some) > room or longest + answer > max_length:
                batches.append([])
                room, longest = batch_size, len(prompt)
            batches[-1].append((prompt, some))
            room -= len(some)
    return batches


def _padded(rows: list[list[int]], value: int, left: bool, device) -> tuple[Tensor, Tensor]:
    """The rows padded with `value` to one length, and a mask of 1 at what was there; both (rows, length) int64."""
    length = max(map(len, rows))
    pads = [length - len(row) for row in rows]
    if left:
        ids = [[value] * pad + row for row, pad in zip(rows, pads, strict=True)]
        mask = [[0] * pad + [1] * len(row) for row, pad in zip(rows, pads, strict=True)]
    else:
        ids = [row + [value] * pad for row, pad in zip(rows, pads, strict=True)]
        mask = [[1] * len(row) + [0] * pad for row, pad in zip(rows, pads, strict=True)]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
