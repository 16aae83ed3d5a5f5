"""Models with random weights and batches of random tokens: the same ones for every method, whatever the machine."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

SEED = 0
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Shape:
    """A model family with its configuration, the batch (examples, tokens of each), and the LoRA rank of the budget."""

    family: str
    config: dict[str, Any]
    batch: int
    length: int
    rank: int


def _llama(layers, hidden, intermediate, heads, kv_heads, vocab) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    }


def _bert(layers, hidden, intermediate, heads, vocab) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "vocab_size": vocab,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


# Width, intermediate, heads, key-value heads, vocabulary.
_LLAMA_3_8B = (4096, 14336, 32, 8, 128256)

SHAPES = {
    "llama": Shape("llama", _llama(8, 512, 1408, 8, 4, 8192), batch=8, length=256, rank=16),
    "bert": Shape("bert", _bert(6, 384, 1536, 12, 30522), batch=16, length=128, rank=16),
    "llama3_8b": Shape("llama", _llama(32, *_LLAMA_3_8B), batch=1, length=512, rank=64),
    "llama3_8b_4x2048": Shape("llama", _llama(32, *_LLAMA_3_8B), batch=4, length=2048, rank=64),
    "llama3_8b_2_layers": Shape("llama", _llama(2, *_LLAMA_3_8B), batch=1, length=512, rank=64),
    "llama2_7b": Shape("llama", _llama(32, 4096, 11008, 32, 32, 32000), batch=1, length=512, rank=64),
    "tiny_llama": Shape("llama", _llama(2, 32, 64, 4, 2, 128), batch=2, length=16, rank=2),
    "tiny_bert": Shape("bert", _bert(2, 32, 64, 4, 128), batch=2, length=16, rank=2),
    # More than any address space holds: what out of memory looks like, on every machine.
    "too_large": Shape("llama", _llama(1, 2**24, 2**30, 4, 2, 2**30), batch=1, length=16, rank=2),
}


def build(shape: Shape, device: torch.device, dtype: torch.dtype, checkpointing: bool = False) -> PreTrainedModel:
    """The seeded model on `device` in train mode; it has no dropout. Built in place, so 8B needs no second copy."""
    model_class, config_class = {
        "llama": (LlamaForCausalLM, LlamaConfig),
        "bert": (BertForSequenceClassification, BertConfig),
    }[shape.family]
    before = torch.get_default_dtype()
    torch.manual_seed(SEED)
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = model_class(config_class(**shape.config))
    finally:
        torch.set_default_dtype(before)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def batch(shape: Shape, device: torch.device, index: int = 0) -> dict[str, torch.Tensor]:
    """input_ids (batch, length) without padding; labels are the tokens themselves, or two classes for the encoder."""
    generator = torch.Generator().manual_seed(SEED + 1 + index)
    size = (shape.batch, shape.length)
    input_ids = torch.randint(shape.config["vocab_size"], size, generator=generator)
    labels = input_ids if shape.family == "llama" else torch.randint(2, (shape.batch,), generator=generator)
    return {"input_ids": input_ids.to(device), "labels": labels.to(device)}
