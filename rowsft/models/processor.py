"""What turns examples into a model's inputs: a tokenizer, or another processor of transformers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import try_to_load_from_cache
from transformers import PreTrainedTokenizerBase

from rowsft.errors import UserError
from rowsft.models.source import needs_package, readable, resolve
from rowsft.tasks.heads import Head

# Where processors keep what they are made of; any of them may be the one that a processor has.
_FILES = (
    *("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "spm.model"),
    *("preprocessor_config.json", "processor_config.json"),
)


def processor_of(head: Head, place: str, options: Mapping[str, Any]) -> Any:
    """The processor that models with that head have, from a folder or hub id; options: of from_pretrained."""
    processor = getattr(transformers, head.processor_class).from_pretrained(place, **options)
    if isinstance(processor, PreTrainedTokenizerBase):
        # Settings that cannot be (a length that is no number) show at the first text.
        ids = processor("a")["input_ids"]
        # Ours, never the file's: copies of one model differ in them.
        processor.padding_side, processor.truncation_side = "left" if head.answers else "right", "right"
        _set_pad_token(processor, ids[-1:])
    return processor


def load_processor(model_cfg: Mapping[str, Any], head: Head) -> Any:
    """The processor of conf/model alone, fetched if need be. Raises UserError for a source that cannot be read."""
    source = str(model_cfg["source"])
    place, options = resolve(source, model_cfg)
    with readable(source):
        processor = processor_of(head, place, options)
    check_filled(processor, source)
    return processor


def check_filled(processor: Any, source: str) -> None:
    """Raise UserError for a tokenizer that `is_empty`."""
    if is_empty(processor):
        raise UserError(
            f"model.source={source}: its tokenizer knows only its {len(processor)} special tokens, so its files are "
            "missing; save the tokenizer into the same folder"
        )


def is_empty(processor: Any) -> bool:
    """Whether it is a tokenizer of special tokens alone, which transformers makes where its files are missing."""
    return isinstance(processor, PreTrainedTokenizerBase) and len(processor) <= len(set(processor.all_special_tokens))


def processor_at_hand(model_cfg: Mapping[str, Any], head: Head) -> Any | None:
    """The processor of conf/model without a network; None where it would have to be fetched or installed first.

    Raises UserError where its files are here and cannot be read.
    """
    source = str(model_cfg["source"])
    place, options = resolve(source, model_cfg)
    try:
        with readable(source):
            processor = processor_of(head, place, {**options, "local_files_only": True})
    except UserError as error:
        if needs_package(error.__cause__) or not _has_files(place, options.get("revision")):
            return None
        raise
    return None if is_empty(processor) else processor


def _set_pad_token(tokenizer: PreTrainedTokenizerBase, end: list[int]) -> None:
    """Take another pad token where there is none, or where texts end with it: with the unknown token, or with `end`.

    Padding is masked everywhere, so any token will do, with one exception: causal models that classify read the last
    token that is not padding, and would miss the end of a text. A tokenizer without pad and end-of-sequence token is
    left without: `capacity.check_padding` refuses it where texts are put into batches.
    """
    usable = [token for token in (tokenizer.pad_token, tokenizer.eos_token) if token is not None]
    if not usable:
        return
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    # Byte-level tokenizers name an unknown token, too, but no text gives it.
    unknown = {tokenizer.unk_token_id} if getattr(model, "unk_token", None) is not None else set()
    candidates = [*usable, *([] if tokenizer.bos_token is None else [tokenizer.bos_token])]
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in candidates}
    tokenizer.pad_token = next((token for token in candidates if ids[token] not in {*unknown, *end}), usable[0])


def _has_files(place: str, revision: str | None) -> bool:
    if revision is None:
        return any((Path(place) / name).is_file() for name in _FILES)
    return any(isinstance(try_to_load_from_cache(place, name, revision=revision), str) for name in _FILES)
