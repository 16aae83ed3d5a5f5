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
from rowsft.tasks.answer_score import AnswerScore, read_scores
from rowsft.tasks.evaluating import evaluation_mode

Group = tuple[tuple[int, ...], list[int]]


def pays(model, encoded: list[dict]) -> bool:
    """Whether a prompt has more than one answer and the model keeps a cache whose rows can be picked (not Mamba's)."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    takes = inspect.signature(base.forward).parameters
    cached = {"past_key_values", "logits_to_keep"} <= set(takes) and not keeps_state(base)
    return cached and len(_by_prompt(encoded)) < len(encoded)


def score(model, encoded: list[dict], pad_id: int, batch_size: int, progress: Progress = None) -> list[AnswerScore]:
    """The score of every encoded answer, in the order given. A batch holds `batch_size` answers, or one prompt's.

    `encoded`: input_ids with labels that are -100 on the prompt (the answer is one run of labels at the end). The model
    takes `logits_to_keep`.
    """
    batches = _batches(_by_prompt(encoded), batch_size)
    results: list[Any] = [None] * len(encoded)
    with evaluation_mode(model) as device:
        for groups in progress(batches, total=len(batches)) if progress else batches:
            members = [index for _, indices in groups for index in indices]
            answers = [[label for label in encoded[index]["labels"] if label != IGNORED] for index in members]
            scores = _score_batch(model, groups, answers, pad_id, device)
            for index, result in zip(members, scores, strict=True):
                results[index] = result
    return results


def _score_batch(model, groups: list[Group], answers: list[list[int]], pad_id: int, device) -> list[AnswerScore]:
    prompts, mask = _padded([list(prompt) for prompt, _ in groups], pad_id, left=True, device=device)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    head = model(input_ids=prompts, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
    owner = torch.tensor([i for i, (_, indices) in enumerate(groups) for _ in indices], device=device)
    targets, _ = _padded(answers, IGNORED, left=False, device=device)
    logits = head.logits[:, -1:].index_select(0, owner)
    if targets.shape[1] > 1:
        cache = head.past_key_values
        cache.batch_select_indices(owner)
        # The last token of an answer predicts nothing, so it is never read.
        inputs, inputs_mask = _padded([answer[:-1] for answer in answers], pad_id, left=False, device=device)
        start = mask.sum(dim=1).index_select(0, owner).unsqueeze(1)
        tail = model(
            input_ids=inputs,
            attention_mask=torch.cat([mask.index_select(0, owner), inputs_mask], dim=1),
            position_ids=start + torch.arange(inputs.shape[1], device=device),
            past_key_values=cache,
            use_cache=True,
        )
        logits = torch.cat([logits, tail.logits], dim=1)
    return read_scores(logits, targets)


def _by_prompt(encoded: list[dict]) -> dict[tuple[int, ...], list[int]]:
    """The prompt's tokens -> indices of its answers."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, example in enumerate(encoded):
        prompt = tuple(
            token for token, label in zip(example["input_ids"], example["labels"], strict=True) if label == IGNORED
        )
        groups.setdefault(prompt, []).append(index)
    return groups


def _batches(groups: dict[tuple[int, ...], list[int]], batch_size: int) -> list[list[Group]]:
    """Prompts of similar length together, longest first: little padding, the memory peak early."""
    batches: list[list[Group]] = []
    room = 0
    for prompt, indices in sorted(groups.items(), key=lambda group: -len(group[0])):
        if not batches or len(indices) > room:
            batches.append([])
            room = batch_size
        batches[-1].append((prompt, indices))
        room -= len(indices)
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
