"""Scoring under gradient checkpointing: blocks keep their inputs alone and run again in the backward pass.

The library's own switch works in train mode, where dropout is on; scoring is in eval mode. The results are the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

_MARK = "_rowsft_recomputed"


@contextmanager
def recomputing(model: nn.Module, wanted: bool = True) -> Iterator[None]:
    """Inside, every block of `model` that can be is recomputed in backward; nothing happens unless it is wanted."""
    blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)] if wanted else []
    text = model.config.get_text_config() if blocks else None
    # A cache would be filled a second time.
    caching = getattr(text, "use_cache", None)
    try:
        if caching:
            text.use_cache = False
        for block in blocks:
            block.forward = _checkpointed(block.forward)
            setattr(block, _MARK, True)
        yield
    finally:
        if caching:
            text.use_cache = caching
        for block in blocks:
            # What the class defines shows again.
            vars(block).pop("forward", None)
            vars(block).pop(_MARK, None)


@contextmanager
def at_once(model: nn.Module) -> Iterator[None]:
    """Inside the block `model` runs without recomputation, whatever is around."""
    blocks = recomputed_blocks(model)
    held = [vars(block).pop("forward") for block in blocks]
    try:
        yield
    finally:
        for block, forward in zip(blocks, held, strict=True):
            block.forward = forward


def recomputed_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks that are recomputed now; none outside `recomputing`."""
    return [module for module in model.modules() if getattr(module, _MARK, False)]


def _checkpointed(forward):
    def run(*args, **kwargs):
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        # Nothing is random in eval mode.
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return run
