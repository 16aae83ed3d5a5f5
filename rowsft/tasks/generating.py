"""Greedy continuations of prompts in batches, by transformers' own `generate`.

A checkpoint's generation settings (sampling, penalties, forced or suppressed tokens, further end tokens) take no part:
`generate` would fill from them whatever the caller leaves open, so the model has empty ones while it generates.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from rowsft.compat.transformers import keeps_state
from rowsft.errors import UserError
from rowsft.tasks import Progress
from rowsft.tasks.evaluating import by_length, evaluation_mode


@dataclass(frozen=True)
class Continuation:
    """What a model wrote after a prompt. token_ids: as generated, an end-of-sequence token included. text: without
    special tokens, and without the stop text and what follows it. stopped: before the limit, by one of the two."""

    text: str
    token_ids: list[int]
    stopped: bool


def continuations(
    model,
    prompts: Sequence[list[int]],
    tokenizer,
    max_new_tokens: int,
    batch_size: int,
    stop: Sequence[str] = (),
    progress: Progress = None,
) -> list[Continuation]:
    """The likeliest token after another, after every prompt (token ids, none empty), in the order given.

    A continuation ends with the tokenizer's end-of-sequence token, with the first of the `stop` texts, or after
    `max_new_tokens`. Batches hold prompts of similar length, longest first, padded on the left. A model without a cache
    of keys and values gets prompts of one length at a time: such models do not all leave padding out.

    A model sharded by FSDP2 gathers its weights in every forward, so all processes must come here with the same
    prompts; they go on together until the last of them is done with a batch. Raises UserError for a model that cannot
    generate.
    """
    base = _base(model)
    if not hasattr(base, "generate"):
        raise UserError(f"{type(base).__name__} has no generate(): choose a causal language model of transformers")
    cached = _keeps_cache(base)
    eos = tokenizer.eos_token_id
    # The mask hides what pads stand for; any token will do.
    pad = next((token for token in (tokenizer.pad_token_id, eos) if token is not None), 0)
    sharded = isinstance(model, FSDPModule)
    if sharded and "generate" not in vars(model):
        # Its hooks gather what lies outside the blocks around `generate` as they do around a forward.
        register_fsdp_forward_method(model, "generate")
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=eos,
        pad_token_id=pad,
        use_cache=cached or keeps_state(base),
    )
    batches = _batches(prompts, batch_size, one_length=not cached)
    results: list[Any] = [None] * len(prompts)
    with evaluation_mode(model) as device, _without_own_settings(model):
        for indices in progress(batches, total=len(batches)) if progress else batches:
            ids, mask = _padded([prompts[i] for i in indices], pad)
            stopping = _StopTexts(stop, tokenizer, ids.shape[1])
            generated = model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                generation_config=settings,
                stopping_criteria=StoppingCriteriaList([stopping] if stop else []),
                synced_gpus=sharded,
            )[:, ids.shape[1] :].tolist()
            for row, (i, tokens) in enumerate(zip(indices, generated, strict=True)):
                results[i] = _read(tokens, eos, stopping.ends.get(row), stop, tokenizer, max_new_tokens)
    return results


def dry_continuation(model, like: Tensor, prompt: int, max_new_tokens: int) -> None:
    """Compute what holds the most memory of `continuations`: the pass over the prompts, and that of the last token.

    like: a batch's token ids, which may be without data; its rows are continued. prompt: tokens of every prompt.
    """
    total = prompt + max_new_tokens - 1
    with evaluation_mode(model):
        if not _keeps_cache(_base(model)):
            # The last token takes a pass over all others.
            model(**_inputs(model, like, total, total))
            return
        output = model(**_inputs(model, like, prompt, prompt), use_cache=True)
        scores = output.logits[:, -1].to(copy=True, dtype=torch.float32)
        if max_new_tokens > 1:
            cache = output.past_key_values
            del output
            for number, layer in enumerate(cache.layers):
                # What the tokens between leave behind, out of one number: no view of what is replaced.
                between = (
                    each.new_zeros(1).expand(*each.shape[:2], total - 1 - prompt, each.shape[3])
                    for each in (layer.keys, layer.values)
                )
                cache.update(*between, number)
            # The scores of one token are kept until there are those of the next.
            output = model(**_inputs(model, like, 1, total), use_cache=True, past_key_values=cache)
            scores = output.logits[:, -1].to(copy=True, dtype=torch.float32)
        del scores


def _inputs(model, like: Tensor, length: int, seen: int) -> dict[str, Any]:
    """A batch for generating: the last `length` of `seen` tokens, and logits of the last alone."""
    takes = inspect.signature(type(_base(model)).forward).parameters
    ids, mask = like.new_ones((len(like), length)), like.new_ones((len(like), seen))
    batch = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(dim=1) - 1)[:, -length:]}
    return {
        **{name: value for name, value in batch.items() if name in takes},
        **({"logits_to_keep": 1} if "logits_to_keep" in takes else {}),
    }


def _keeps_cache(base) -> bool:
    """Whether the model keeps keys and values of every token, which grow with the text."""
    return "past_key_values" in inspect.signature(type(base).forward).parameters and not keeps_state(base)


def _base(model):
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _batches(prompts: Sequence[list[int]], batch_size: int, one_length: bool) -> list[list[int]]:
    """Indices of the prompts of each batch; `one_length`: a batch ends where the length changes."""
    encoded = [{"input_ids": prompt} for prompt in prompts]
    if not one_length:
        return by_length(encoded, batch_size)
    batches: list[list[int]] = []
    for (i,) in by_length(encoded, 1):
        full = not batches or len(batches[-1]) == batch_size
        if full or len(prompts[batches[-1][0]]) != len(prompts[i]):
            batches.append([])
        batches[-1].append(i)
    return batches


def _padded(prompts: list[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    """The prompts padded on the left, and a mask of 1 at their tokens; both (prompts, length) int64."""
    length = max(map(len, prompts))
    ids = [[pad] * (length - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids), torch.tensor(mask)


@contextmanager
def _without_own_settings(model) -> Iterator[None]:
    """Inside the block the model has no generation settings of its own."""
    holders = [part for part in (model, _base(model)) if "generation_config" in vars(part)]
    before = [part.generation_config for part in holders]
    for part in holders:
        part.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for part, own in zip(holders, before, strict=True):
            part.generation_config = own


class _StopTexts(StoppingCriteria):
    """Whether a row's generated text has come to hold a stop text. ends: row -> tokens generated by then.

    transformers' own criterion counts the prompt's last letters in, and takes minutes over a large vocabulary.
    """

    def __init__(self, texts: Sequence[str], tokenizer, prompt_length: int):
        self.texts, self.tokenizer, self.prompt_length = texts, tokenizer, prompt_length
        # A token has a byte at least; some more, for those that show nothing.
        self.tail = max((len(text.encode()) for text in texts), default=0) + 8
        self.ends: dict[int, int] = {}

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        length = input_ids.shape[1]
        recent = input_ids[:, max(self.prompt_length, length - self.tail) :].tolist()
        for row, tokens in enumerate(recent):
            if row not in self.ends and _first(_text(tokens, self.tokenizer), self.texts) is not None:
                self.ends[row] = length - self.prompt_length
        return torch.tensor([row in self.ends for row in range(len(recent))], device=input_ids.device)


def _read(
    tokens: list[int], eos: int | None, stop_end: int | None, stop: Sequence[str], tokenizer, most: int
) -> Continuation:
    """The continuation in a row of generated tokens; what comes after its end is padding."""
    ends = [stop_end] if stop_end is not None else []
    if eos in tokens:
        ends.append(tokens.index(eos) + 1)
    kept = tokens[: min(ends, default=most)]
    # Not every tokenizer holds its end token for a special one.
    text = _text(kept[:-1] if kept[-1] == eos else kept, tokenizer)
    return Continuation(text[: _first(text, stop)], kept, bool(ends))


def _text(tokens: list[int], tokenizer) -> str:
    return tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _first(text: str, stop: Sequence[str]) -> int | None:
    """Where the first stop text begins; None where there is none."""
    return min((at for at in map(text.find, stop) if at >= 0), default=None)
