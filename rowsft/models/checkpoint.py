"""A plain transformers checkpoint that a pipeline can use: classes with their names, and the tokenizer beside it."""

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase


def name_classes(model: PreTrainedModel, classes: Sequence[str] | None) -> None:
    """Tell the model's configuration what its outputs stand for; nothing where a task has no classes."""
    if classes:
        model.config.id2label = dict(enumerate(classes))
        model.config.label2id = {name: index for index, name in enumerate(classes)}


def write_checkpoint(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, classes: Sequence[str] | None, folder: Path
) -> None:
    """Save model and tokenizer so that AutoModel, AutoTokenizer and pipelines load them from `folder`."""
    name_classes(model, classes)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
