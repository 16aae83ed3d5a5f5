"""What a model takes (longest text, token ids, padding) and whether texts fit: checked before training."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rowsft.batch import IGNORED
from rowsft.errors import UserError, shortened


def positions_of(model: PreTrainedModel) -> int | None:
    """The longest text, in tokens, that the model has positions for; None where it sets no end.

    Read off the model, so that it holds for any family: in a table of positions that keeps a row for padding, the
    first token comes after that row (RoBERTa and its descendants). Tables that add rows of their own for an offset
    (OPT, BART) have as many as the configuration says. The meta device will do.
    """
    configured = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    # XLNet gives -1 where it counts no positions.
    if not configured or configured < 0:
        return None
    return configured - max((table.padding_idx + 1 for table in _position_tables(model, configured)), default=0)


def counts_from_padding(model: PreTrainedModel) -> bool:
    """Whether the number of a text's first position depends on which token the configuration calls padding."""
    configured = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return configured is not None and bool(configured and _position_tables(model, configured))


def check_length(model: PreTrainedModel, length: int | None, key: str = "task.max_length") -> None:
    """Raise UserError for texts of more tokens than the model has positions for. key: the setting of `length`."""
    positions = positions_of(model)
    if not (positions and length and length > positions):
        return
    configured = model.config.get_text_config().max_position_embeddings
    before = f" for tokens (of {configured}, the first {configured - positions} are for padding)"
    raise UserError(
        f"{key}={length}: the model has {positions} positions{before if configured > positions else ''}; "
        f"lower it to {positions} or less"
    )


def check_padding(tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Raise UserError for a tokenizer that has no token to fill shorter texts of a batch with."""
    if tokenizer.pad_token_id is None:
        raise UserError(
            f"model.source={source}: its tokenizer has neither a pad_token nor an eos_token, so texts of different "
            "lengths cannot form a batch; name one of its tokens as pad_token in the folder's tokenizer_config.json"
        )


def spare_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many ids the tokenizer has beyond the rows of the model's embeddings; 0 where each id has its row."""
    return max(0, _ids(tokenizer) - _rows(model))


def check_pad_id(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Raise UserError where padding, which any batch may hold, has no row in the embeddings."""
    if tokenizer.pad_token_id >= _rows(model):
        raise UserError(_too_many(model, tokenizer, source, f"its pad_token {tokenizer.pad_token}"))


def check_encoded(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    split: str,
    examples: Sequence[Mapping[str, Any]],
    encoded: Sequence[Mapping[str, Any]],
) -> None:
    """Check what a task's `encode` has made of the `examples` of a split.

    Raises UserError for an example without tokens, and for a token id that the embeddings have no row for.
    """
    rows, may_exceed = _rows(model), spare_tokens(model, tokenizer) > 0
    for index, each in enumerate(encoded):
        ids = each["input_ids"]
        # None stands where a tokenizer without BOS and EOS has nothing to start a prompt with.
        if not ids or ids[0] is None:
            raise UserError(
                f"{_name(examples, encoded, index)} of the {split} data gives no token, and the tokenizer of "
                f"model.source={source} puts none in front (it has no BOS token); remove the example, or fill its text"
            )
        if may_exceed and max(ids) >= rows:
            token = tokenizer.convert_ids_to_tokens(max(ids))
            used = f"{_name(examples, encoded, index)} of the {split} data holds {shortened(token)}"
            raise UserError(_too_many(model, tokenizer, source, used))
        if isinstance(each["labels"], list) and each["labels"][-1] == IGNORED:
            raise UserError(
                f"{_name(examples, encoded, index)} of the {split} data has an answer without any token, and the "
                f"tokenizer of model.source={source} adds no EOS token; remove the example, or fill its answer"
            )


def _position_tables(model: PreTrainedModel, count: int) -> list[Any]:
    """Embeddings of `count` rows that tell of padding, input embeddings apart."""
    tokens = model.get_input_embeddings()
    modules: Iterable[Any] = model.modules()
    return [
        module
        for module in modules
        if module is not tokens
        and isinstance(getattr(module, "padding_idx", None), int)
        and getattr(getattr(module, "weight", None), "ndim", 0) == 2
        and len(module.weight) == count
    ]


def _rows(model: PreTrainedModel) -> int:
    embeddings: Any = model.get_input_embeddings()
    return getattr(embeddings, "num_embeddings", len(embeddings.weight))


def _ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the largest id: ids may leave gaps, so this is not the number of tokens."""
    return 1 + max(tokenizer.get_vocab().values(), default=-1)


def _too_many(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str, used: str) -> str:
    rows, ids = _rows(model), _ids(tokenizer)
    return (
        f"model.source={source}: its tokenizer has {ids:,} ids, {ids - rows:,} more than its embeddings have rows "
        f"({rows:,}), and {used}; save the tokenizer that belongs to the model there, or the model after "
        f"model.resize_token_embeddings({ids})"
    )


def _name(examples: Sequence[Mapping[str, Any]], encoded: Sequence, index: int) -> str:
    same = len(examples) == len(encoded)
    return f"example {shortened(examples[index].get('id', index))}" if same else f"encoded example {index}"
