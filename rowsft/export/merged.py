"""The adapter built into its base model: a plain transformers checkpoint with its tokenizer."""

from pathlib import Path

from peft import PeftModel
from torch import Tensor

from rowsft.errors import UserError
from rowsft.export.intact import check_intact, head_settings, needs_weights
from rowsft.export.source import PREFIX, Source
from rowsft.methods.peft_method import without_wrappers
from rowsft.models.checkpoint import write_checkpoint
from rowsft.models.loading import Loaded, load


def write_merged(source: Source, folder: Path) -> None:
    """Load the base model, merge the adapter, save model and tokenizer so that AutoModel and AutoTokenizer load them.

    Raises UserError where the base is not the one that the run started from, or lacks weights that the adapter does not
    bring.
    """
    tensors = source.tensors()
    if not needs_weights(source):
        check_intact(source, tensors)
    head = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    classes = source.result.task_about.classes
    loaded = load(source.model, source.head, head_settings(source, tensors))
    _check_base(source, loaded, head)
    if needs_weights(source):
        check_intact(source, tensors, loaded.model)
    model = without_wrappers(PeftModel.from_pretrained(loaded.model, source.folder).merge_and_unload())
    write_checkpoint(model, loaded.processor, classes, folder)


def _check_base(source: Source, loaded: Loaded, head: dict[str, Tensor]) -> None:
    recorded = source.result.model_facts.revision
    if recorded not in (None, loaded.revision):
        raise UserError(
            f"{source.name} was trained on revision {recorded} of {source.model['source']}, which is now "
            f"{loaded.revision}; put the old one back, or run again"
        )
    missing = sorted(set(loaded.facts["new_weights"]) - set(head))
    if missing:
        raise UserError(
            f"{source.model['source']} lacks {missing[0]}, and {source.name} did not train it, so it would be random; "
            "give a base checkpoint that has it"
        )
