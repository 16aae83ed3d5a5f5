"""Sequence classification and regression: encoding of one text or a pair, right padding."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from rowsft.tasks import Size
from rowsft.tasks.heads import SEQUENCE_CLASSIFICATION
from rowsft.tasks.labelled import LabelledTask
from rowsft.tasks.long_examples import longer


class ClassificationTask(LabelledTask):
    """Examples are {"id", "text", "pair" (absent for single texts), "label"}; labels are class indices or floats."""

    head = SEQUENCE_CLASSIFICATION
    max_length: int

    def may_encode_nothing(self, tokenizer, /) -> bool:
        """Whether a text without tokens stays without: nothing is put around it."""
        return not tokenizer("")["input_ids"]

    def encoding_settings(self) -> dict[str, Any]:
        """The most tokens of an example."""
        return {"max_length": self.max_length}

    def encode(self, examples: list[dict], tokenizer, /) -> list[dict]:
        """input_ids (and token_type_ids where the model has them) cut to max_length tokens, labels, no padding."""
        out = _tokenised(examples, tokenizer, truncation=True, max_length=self.max_length)
        names = [name for name in ("input_ids", "token_type_ids") if name in out]
        return [
            {**{name: out[name][i] for name in names}, "labels": example["label"]} for i, example in enumerate(examples)
        ]

    def too_long(self, examples: list[dict], tokenizer, /) -> list[bool]:
        """Whether the text, or both texts of a pair, have more than max_length tokens with those around them."""

        def counts(some: list[dict]) -> list[int]:
            return list(map(len, _tokenised(some, tokenizer, truncation=False, verbose=False)["input_ids"]))

        return longer(examples, lambda one: (one["text"], one.get("pair", "")), self.max_length, counts)

    def collator(self, tokenizer, model=None, /) -> Callable[[list[dict]], dict[str, torch.Tensor]]:
        """Right padding to the longest example: input_ids, attention_mask (batch, length), labels (batch,)."""
        dtype = self._label_dtype
        return lambda encoded: pad_right(encoded, tokenizer.pad_token_id, dtype)

    def dummy_batch(self, model, count: int, size: Size, empty: Callable[..., torch.Tensor]) -> dict[str, torch.Tensor]:
        """The collator's tensors; token_type_ids for a model that tells the texts of a pair apart, as BERT does."""
        names = ["input_ids", "attention_mask"]
        if getattr(model.config, "type_vocab_size", 0) > 1:
            names.append("token_type_ids")
        batch = {name: empty((count, size.tokens)) for name in names}
        return {**batch, "labels": empty((count,), self._label_dtype)}


def _tokenised(examples: list[dict], tokenizer, **options: Any) -> Mapping[str, list[list[int]]]:
    pairs = [example["pair"] for example in examples] if examples and "pair" in examples[0] else None
    return tokenizer([example["text"] for example in examples], pairs, return_attention_mask=False, **options)


def pad_right(encoded: list[dict], pad_id: int, label_dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Stack encoded examples: pads carry mask 0 and token type 0."""
    length = max(len(example["input_ids"]) for example in encoded)
    batch: dict[str, Any] = {
        "input_ids": [_fill(example["input_ids"], pad_id, length) for example in encoded],
        "attention_mask": [_fill([1] * len(example["input_ids"]), 0, length) for example in encoded],
    }
    if "token_type_ids" in encoded[0]:
        batch["token_type_ids"] = [_fill(example["token_type_ids"], 0, length) for example in encoded]
    batch = {name: torch.tensor(rows) for name, rows in batch.items()}
    return {**batch, "labels": torch.tensor([example["labels"] for example in encoded], dtype=label_dtype)}


def _fill(row: list[int], value: int, length: int) -> list[int]:
    return [*row, *[value] * (length - len(row))]
