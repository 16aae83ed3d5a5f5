"""Tiny models of further families, from their configs: what each calls its batch, and how many layers can be tuned."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from tiny import PAD, VOCAB, build, causal_batch, classification_batch, tiny_bert, tiny_gpt2, tiny_llama
from torch import nn
from transformers import (
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    GemmaConfig,
    GemmaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

DECODER = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
}
ENCODER = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "num_labels": 3,
}


@dataclass(frozen=True)
class Family:
    """build(dtype) -> model. batch(dtype) -> inputs with labels. layers: tunable ones, heads and poolers left out."""

    build: Callable[[torch.dtype], nn.Module]
    batch: Callable[[torch.dtype], dict[str, torch.Tensor]]
    layers: int


def _model(model_class, config, **settings) -> Callable[[torch.dtype], nn.Module]:
    return lambda dtype: build(model_class, config(**settings), dtype, seed=0)


def _tokens(batch) -> Callable[[torch.dtype], dict[str, torch.Tensor]]:
    return lambda dtype: batch()


def _sequence_pairs(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {**causal_batch(), "labels": causal_batch(length=5, seed=2)["labels"]}


def _pixels(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
    return {"pixel_values": pixels, "labels": torch.tensor([0, 2])}


MORE_FAMILIES = {
    "llama": Family(tiny_llama, _tokens(causal_batch), 14),
    "bert": Family(tiny_bert, _tokens(classification_batch), 12),
    "gpt2": Family(tiny_gpt2, _tokens(causal_batch), 8),
    "mistral": Family(_model(MistralForCausalLM, MistralConfig, **DECODER), _tokens(causal_batch), 14),
    "gemma": Family(_model(GemmaForCausalLM, GemmaConfig, **DECODER), _tokens(causal_batch), 14),
    "qwen2": Family(
        _model(
            Qwen2ForCausalLM,
            Qwen2Config,
            **{key: value for key, value in DECODER.items() if key != "head_dim"},
            tie_word_embeddings=True,
        ),
        _tokens(causal_batch),
        14,
    ),
    "opt": Family(
        _model(
            OPTForCausalLM,
            OPTConfig,
            vocab_size=VOCAB,
            hidden_size=32,
            ffn_dim=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            word_embed_proj_dim=32,
            dropout=0.0,
            pad_token_id=PAD,
        ),
        _tokens(causal_batch),
        12,
    ),
    "roberta": Family(
        _model(RobertaForSequenceClassification, RobertaConfig, **ENCODER), _tokens(classification_batch), 12
    ),
    "deberta_v3": Family(
        _model(
            DebertaV2ForSequenceClassification,
            DebertaV2Config,
            **ENCODER,
            relative_attention=True,
            position_buckets=8,
            norm_rel_ebd="layer_norm",
            share_att_key=True,
            pos_att_type=["p2c", "c2p"],
            pooler_dropout=0.0,
            pooler_hidden_size=32,
        ),
        _tokens(classification_batch),
        12,
    ),
    "t5": Family(
        _model(
            T5ForConditionalGeneration,
            T5Config,
            vocab_size=VOCAB,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=PAD,
            decoder_start_token_id=PAD,
        ),
        _sequence_pairs,
        36,
    ),
    "vit": Family(
        _model(
            ViTForImageClassification,
            ViTConfig,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=16,
            patch_size=8,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            num_labels=3,
        ),
        _pixels,
        12,
    ),
}
