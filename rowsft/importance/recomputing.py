"""Scoring under gradient checkpointing: blocks keep their inputs alone and run again in the backward pass.

The library's own switch works in train mode, where dropout is on; scoring is in eval mode. The results are the same.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

# Of a block that is recomputed: the forward of its own that it had, or None for its class's.
_OWN_FORWARD = "_rowsft_own_forward"


@contextmanager
def recomputing(model: nn.Module, wanted: bool = True) -> Iterator[None]:
    """Inside, every block of `model` that can be is recomputed in backward; nothing happens unless it is wanted."""
    blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)] if wanted else []
    config: Any = model.config
    text: Any = config.get_text_config() if blocks else None
    # A cache would be filled a second time.
    caching = getattr(text, "use_cache", None)
    try:
        if caching:
            text.use_cache = False
        for block in blocks:
            # Hooks of accelerate are a forward of the block's own.
            vars(block)[_OWN_FORWARD] = vars(block).get("forward")
            vars(block)["forward"] = _checkpointed(block.forward)
        yield
    finally:
        if caching:
            text.use_cache = caching
        for module in recomputed_blocks(model):
            _put_own_forward(module)
            del vars(module)[_OWN_FORWARD]


@contextmanager
def at_once(model: nn.Module) -> Iterator[None]:
    """Inside the block `model` runs without recomputation, whatever is around."""
    blocks = recomputed_blocks(model)
    checkpointed = [vars(block)["forward"] for block in blocks]
    try:
        for block in blocks:
            _put_own_forward(block)
        yield
    finally:
        for block, forward in zip(blocks, checkpointed, strict=True):
            vars(block)["forward"] = forward


def recomputed_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the blocks that are recomputed now; none outside `recomputing`."""
    return [module for module in model.modules() if _OWN_FORWARD in vars(module)]


def _put_own_forward(block: nn.Module) -> None:
    """Undo what `recomputing` put on a block."""
    own = vars(block)[_OWN_FORWARD]
    if own is None:
        del vars(block)["forward"]
    else:
        vars(block)["forward"] = own


def _checkpointed(forward: Callable) -> Callable:
    def run(*args, **kwargs):
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        # Nothing is random in eval mode.
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return run
