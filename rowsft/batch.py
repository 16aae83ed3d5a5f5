"""Batches: the label that does not count, how large a batch is, and its way to a device.

A batch is a list of encoded examples (dicts of plain lists), or the dict of tensors that a collator makes of them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Batch = TypeVar("Batch", Mapping[str, Any], list[dict])

# What torch's losses leave out.
IGNORED = -100


def tokens(encoded: Mapping[str, Any]) -> int:
    """Tokens of an encoded example; 1 where it holds none, as an image does: all are then equally long."""
    return len(encoded["input_ids"]) if "input_ids" in encoded else 1


def longest_first(examples: Sequence[dict]) -> list[dict]:
    """Examples that are not encoded yet, by the letters of all that they hold."""
    return sorted(examples, key=lambda example: -len(str(example)))


def largest_batch(batches: Sequence[Batch]) -> Batch:
    """The batch with the most tokens, padding included, or entries of its largest tensor where it has no input_ids.

    Of equal ones it is one with padding, whose mask takes memory.
    """
    sizes = [_size(batch) for batch in batches]
    equal = [batch for batch, size in zip(batches, sizes, strict=True) if size == max(sizes)]
    # A batch without data, which a plan has, cannot say whether it has padding; it has no equal either.
    return equal[0] if len(equal) == 1 else next((batch for batch in equal if _has_padding(batch)), equal[0])


def on_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch with its tensors on `device`."""
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def device_of(model: nn.Module) -> torch.device:
    """Where the model takes its inputs."""
    return next(model.parameters()).device


def _size(batch: Mapping[str, Any] | list[dict]) -> int:
    if isinstance(batch, list):
        return len(batch) * max(map(tokens, batch))
    if "input_ids" in batch:
        return batch["input_ids"].numel()
    return max(value.numel() for value in batch.values() if isinstance(value, Tensor))


def _has_padding(batch: Mapping[str, Any] | list[dict]) -> bool:
    if isinstance(batch, list):
        return len(set(map(tokens, batch))) > 1
    mask = batch.get("attention_mask")
    return mask is not None and not mask.is_meta and not bool(mask.all())
