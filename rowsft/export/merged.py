"""The adapter built into its base model: a plain transformers checkpoint with its tokenizer."""

from collections.abc import Iterator
from pathlib import Path

from peft import PeftModel
from torch import Tensor

from rowsft.errors import UserError
from rowsft.export.intact import check_intact, head_settings, needs_weights
from rowsft.export.source import PREFIX, Source
from rowsft.layers.packing import packed, unpack
from rowsft.layers.quantised import dequantised
from rowsft.methods.peft_method import without_wrappers
from rowsft.models.checkpoint import write_checkpoint
from rowsft.models.loading import Loaded, load
from rowsft.tuner.quantised_start import adapted_layers, add_residuals

#: What an adapter of a quantised base may be merged into: what the codes stand for, or the weights they were made from.
INTO = ("quantised", "original")


def check_into(source: Source, into: str | None) -> None:
    """Raise UserError unless `into` says what an adapter is merged into where there is a choice, and only there."""
    kind = source.model.get("quantize")
    if kind is None and into is not None:
        raise UserError(
            f"--merge-into {into}: the base of {source.name} was not quantised, so there is one model to merge into; "
            "leave it out"
        )
    if kind is not None and into not in INTO:
        raise UserError(
            f"{source.name} was trained on a base in {kind}; say what to merge into: --merge-into quantised (the "
            "unpacked values of that base: the model as it was trained) or --merge-into original (the weights before "
            "quantisation: another model, which was never evaluated)"
        )


def write_merged(source: Source, folder: Path, into: str | None = None) -> None:
    """Load the base model, merge the adapter, save model and tokenizer so that AutoModel and AutoTokenizer load them.

    into: one of `INTO` for an adapter of a quantised base. Raises UserError where the base is not the one that the run
    started from, or lacks weights that the adapter does not bring.
    """
    check_into(source, into)
    tensors = source.tensors()
    if not needs_weights(source):
        check_intact(source, tensors)
    head = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    classes = source.result.task_about.classes
    kind = None if into == "original" else source.model.get("quantize")
    loaded = load({**source.model, "quantize": kind}, source.head, head_settings(source, tensors))
    _check_base(source, loaded, head)
    if needs_weights(source):
        check_intact(source, tensors, loaded.model)
    adapted = PeftModel.from_pretrained(unpack(loaded.model), source.folder)
    if into == "original" and source.config.get("quantised_start") == "residual":
        # They hold the start, W - Q, which lies in these weights already.
        add_residuals(adapted, _residuals(adapted, source.model["quantize"]), sign=-1)
    write_checkpoint(without_wrappers(adapted.merge_and_unload()), loaded.processor, classes, folder)


def _residuals(model: PeftModel, kind: str) -> Iterator[tuple[str, Tensor]]:
    """W - Q of every layer that row-SFT adapts, Q what it would stand for in the codes of the trained base."""
    for name, layer in adapted_layers(model).items():
        weight = layer.get_base_layer().weight.detach()
        stands_for = dequantised(packed(layer.get_base_layer(), kind))
        assert stands_for is not None, "packed here"
        yield name, weight.float() - stands_for.float()


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
