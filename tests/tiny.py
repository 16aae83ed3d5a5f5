"""Tiny transformers models built from a config: seeded, no download, milliseconds each."""

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

VOCAB = 128
PAD = 0


def build(model_class: type[PreTrainedModel], config, dtype: torch.dtype, seed: int) -> PreTrainedModel:
    """Build in eval mode with the global random stream left as it was; 1-D parameters get noise too.

    A fresh model has zero biases and unit norms, which would hide a bias that is dropped or added twice.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config).to(dtype).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def tiny_llama(dtype: torch.dtype = torch.float32, seed: int = 0, **overrides) -> LlamaForCausalLM:
    """Two-layer causal language model with grouped-query attention (4 heads of 8, 2 kv heads), untied embeddings."""
    settings = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": PAD,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }
    return build(LlamaForCausalLM, LlamaConfig(**{**settings, **overrides}), dtype, seed)


def tiny_bert(
    dtype: torch.dtype = torch.float32, seed: int = 0, num_labels: int = 3, **overrides
) -> BertForSequenceClassification:
    """Two-layer encoder with a classification head; dropout is off so that train mode is deterministic too."""
    settings = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "pad_token_id": PAD,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "num_labels": num_labels,
    }
    return build(BertForSequenceClassification, BertConfig(**{**settings, **overrides}), dtype, seed)


def tiny_gpt2(dtype: torch.dtype = torch.float32, seed: int = 0, **overrides) -> GPT2LMHeadModel:
    """Two-layer causal language model whose linears are transformers' Conv1D (W stored transposed, with a bias)."""
    settings = {
        "vocab_size": VOCAB,
        "n_embd": 32,
        "n_inner": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "pad_token_id": PAD,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return build(GPT2LMHeadModel, GPT2Config(**{**settings, **overrides}), dtype, seed)


def causal_batch(batch: int = 2, length: int = 9, seed: int = 1) -> dict[str, torch.Tensor]:
    """input_ids, attention_mask and labels (batch, length); the last row is right-padded, pads labelled -100."""
    input_ids = torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(input_ids)
    mask[-1, -2:] = 0
    input_ids[mask == 0] = PAD
    return {"input_ids": input_ids, "attention_mask": mask, "labels": input_ids.masked_fill(mask == 0, -100)}


def classification_batch(
    batch: int = 4, length: int = 9, num_labels: int = 3, seed: int = 1
) -> dict[str, torch.Tensor]:
    """input_ids and attention_mask (batch, length), labels (batch,); the last row is right-padded."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(3, VOCAB, (batch, length), generator=generator)
    mask = torch.ones_like(input_ids)
    mask[-1, -2:] = 0
    input_ids[mask == 0] = PAD
    labels = torch.randint(0, num_labels, (batch,), generator=generator)
    return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}
