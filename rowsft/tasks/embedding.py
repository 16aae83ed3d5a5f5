"""Sentence embeddings of an untrained encoder, as a reference that costs no training."""

import numpy as np
import torch

from rowsft.tasks.classification import pad_right
from rowsft.tasks.evaluating import run_batches

_BATCH = 64


def cosine_similarities(model, examples: list[dict], tokenizer, max_length: int) -> np.ndarray:
    """Cosine of the embeddings of `text` and `pair` of each example, shape (examples,)."""
    left = embed(model, [example["text"] for example in examples], tokenizer, max_length)
    right = embed(model, [example["pair"] for example in examples], tokenizer, max_length)
    return (left * right).sum(axis=1) / (np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1))


def embed(model, texts: list[str], tokenizer, max_length: int) -> np.ndarray:
    """Mean of the last hidden states over each text's own tokens, shape (texts, hidden size), float64.

    `model` is a transformers model with any head; only its encoder runs.
    """
    encoder = getattr(model, model.base_model_prefix)
    tokens = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
    encoded = [{"input_ids": row, "labels": 0} for row in tokens]
    rows = run_batches(
        encoder,
        encoded,
        lambda batch: pad_right(batch, tokenizer.pad_token_id, torch.long),
        _BATCH,
        None,
        lambda output, batch: _mean_pool(output.last_hidden_state, batch["attention_mask"]).cpu().tolist(),
    )
    return np.array(rows)


def _mean_pool(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = mask.unsqueeze(-1).double()
    return (hidden.double() * weights).sum(dim=1) / weights.sum(dim=1)
