"""What conf/model and a task's head ask of transformers: the model's class, its dtype, its attention kernel."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from rowsft.errors import UserError
from rowsft.tasks.heads import Head

_DTYPES = ("float32", "bfloat16", "float16")
_FLOAT32_ALONE = ("deberta",)


def model_class(head: Head) -> Any:
    """The auto class of transformers that makes models with that head."""
    return getattr(transformers, head.model_class)


def configure(config: PretrainedConfig, head_settings: Mapping[str, Any] | None) -> None:
    """Put what a task says of its head, such as num_labels, into a model's configuration."""
    for name, value in (head_settings or {}).items():
        setattr(config, name, value)


def check_kind(source: str, config: PretrainedConfig, head: Head) -> None:
    """Raise UserError for a kind of model that the suite does not know, or that cannot do what the head is for."""
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"model.source={source}: encoder-decoder models ({config.model_type}) are not supported; choose an encoder "
            "or a causal language model"
        )
    if head.answers and _sees_what_follows(config):
        raise UserError(
            f"model.source={source}: a {config.model_type} model reads a text in both directions, so that it would see "
            "the answers it is scored on; choose a causal language model for this task (a checkpoint that was trained "
            "as a decoder says is_decoder in its config.json)"
        )


def _sees_what_follows(config: PretrainedConfig) -> bool:
    """Whether a position attends to those after it, though transformers has a causal head for such models."""
    masked = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    decoder = getattr(config, "is_decoder", False) or getattr(config, "causal", False)
    # Gemma's embedding models say so; "vision" is about pictures alone.
    both_ways = getattr(config.get_text_config(), "use_bidirectional_attention", False)
    return (masked and not decoder) or both_ways in (True, "all")


def dtype_of(name: str | None) -> torch.dtype | str:
    """The torch dtype of that name; "auto", the checkpoint's own, for None. Raises UserError for another name."""
    if name is None:
        return "auto"
    if name not in _DTYPES:
        raise UserError(f"model.dtype={name}: expected {', '.join(_DTYPES)}, or null for the checkpoint's own")
    return getattr(torch, name)


def check_dtype(config: PretrainedConfig, dtype: torch.dtype | str) -> None:
    """Raise UserError for a dtype ("auto": the configuration's own) in which transformers cannot run that model."""
    kind = config.dtype if dtype == "auto" else dtype
    if config.model_type in _FLOAT32_ALONE and kind not in (None, torch.float32):
        raise UserError(
            f"model.dtype={str(kind).removeprefix('torch.')}: models of type {config.model_type} compute in float32 "
            "alone, as transformers mixes dtypes in their attention; set model.dtype=float32"
        )


def check_autocast(config: PretrainedConfig, autocast: str | None) -> None:
    """Raise UserError for a model that transformers cannot run under autocast."""
    if autocast is not None and config.model_type in _FLOAT32_ALONE:
        raise UserError(
            f"trainer.autocast={autocast}: models of type {config.model_type} compute in float32 alone, as "
            "transformers mixes dtypes in their attention; set trainer.autocast=null"
        )


@contextmanager
def attention_kernel(model_cfg: Mapping[str, Any]) -> Iterator[None]:
    """Blame the attention kernel, not the checkpoint, where transformers refuses it."""
    kernel = model_cfg.get("attn_implementation")
    try:
        yield
    except (ValueError, ImportError) as error:
        message = str(error)
        # Spelled as the setting is, or FlashAttention2.
        named = kernel and kernel.replace("_", "") in message.lower().replace("_", "")
        if kernel and (named or "attn_implementation" in message or "attention implementation" in message):
            first = " ".join(message.split())[:200]
            raise UserError(
                f"model.attn_implementation={kernel}: cannot be used here ({first}); expected sdpa or eager, "
                "flash_attention_2 where it is installed, or null to let transformers choose"
            ) from error
        raise
