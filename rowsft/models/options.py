"""What conf/model and a task's head ask of transformers: the model's class, its dtype, its attention kernel."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig

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


def check_kind(source: str, config: PretrainedConfig) -> None:
    """Raise UserError for a kind of model that the suite does not know."""
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"model.source={source}: encoder-decoder models ({config.model_type}) are not supported; choose an encoder "
            "or a causal language model"
        )


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
