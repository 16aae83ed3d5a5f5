"""What is used of transformers, its Trainer apart, beyond its published interface. Checked in 5.4 to 5.23."""

from torch import nn
from transformers import PretrainedConfig
from transformers.utils import import_utils

# Where transformers asks whether a tensor is a fake one, which it takes for a trace. A plan has it say no.
__all__ = ["attention_of", "commit_of", "import_utils", "keeps_state"]


def attention_of(config: PretrainedConfig) -> str | None:
    """Return the implementation of attention that a model takes; `set_attn_implementation` has no counterpart."""
    return config._attn_implementation


def commit_of(config: PretrainedConfig) -> str | None:
    """Return the hub's commit that a configuration was read at, so that weights and tokenizer come from the same."""
    return getattr(config, "_commit_hash", None)


def keeps_state(model: nn.Module) -> bool:
    """Return whether a model carries a state from token to token, as Mamba does, of which no row can be picked."""
    return getattr(model, "_is_stateful", False)
