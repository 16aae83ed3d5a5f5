"""Whether an adapter's file holds what its configuration and its base model ask for: looked at before any export."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import cast

import torch
from peft import PeftConfig, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn

from rowsft.errors import UserError, shortened
from rowsft.export.source import CONFIG, PREFIX, TENSORS, Source
from rowsft.methods.peft_method import without_wrappers
from rowsft.models.blueprint import skeleton
from rowsft.progress import bar
from rowsft.tasks.heads import label_settings

_AGAIN = "the file is damaged, or belongs to another configuration or base model: save the adapter again"


def head_settings(source: Source, tensors: dict[str, Tensor]) -> dict:
    """num_labels and problem_type of the base model; the trained head itself says how many outputs it has."""
    if not source.head.fresh:
        return {}
    plain = skeleton(source.model, source.head)
    known = {f"{PREFIX}{name}": parameter.shape for name, parameter in plain.named_parameters()}
    changed = (
        len(tensor) for name, tensor in tensors.items() if tensor.ndim and known.get(name, tensor.shape) != tensor.shape
    )
    num_labels = next(changed, cast(int, plain.config.num_labels))
    if source.record:
        return label_settings(num_labels)
    return {"num_labels": num_labels, "problem_type": plain.config.problem_type}


def needs_weights(source: Source) -> bool:
    """Whether an adapter of this kind can be made beside real weights only: SHiRA's chooses its entries there."""
    return source.config.get("peft_type") not in ("ROW_SFT", "LORA")


def check_intact(source: Source, tensors: dict[str, Tensor], base: nn.Module | None = None) -> None:
    """Raise UserError for a tensor that is missing, too much, of another shape or kind of number, or not finite.

    base: the loaded base model, given back as it was; None where shapes alone will do (see `needs_weights`).
    """
    file = source.folder / TENSORS
    expected = _expected(source, tensors, base)
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise UserError(f"{file} lacks {missing[0]}{_more(missing)}; {_AGAIN}")
    extra = [name for name in tensors if name not in expected]
    if extra:
        raise UserError(f"{file} holds {extra[0]}{_more(extra)}, which the adapter does not train; {_AGAIN}")
    for name, tensor in bar("checking")(tensors.items(), len(tensors)):
        wanted = expected[name]
        if tensor.shape != wanted.shape:
            raise UserError(
                f"{name} in {file} has shape {tuple(tensor.shape)}; expected {tuple(wanted.shape)}: {_AGAIN}"
            )
        if tensor.is_floating_point() != wanted.is_floating_point():
            kind = "real numbers" if wanted.is_floating_point() else "whole numbers"
            raise UserError(f"{name} in {file} holds {tensor.dtype}; expected {kind}: {_AGAIN}")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(
                f"{name} in {file} is not finite (nan or inf), so no model could use it; train again with a lower rate"
            )


def _expected(source: Source, tensors: dict[str, Tensor], base: nn.Module | None) -> dict[str, Tensor]:
    """The tensors that PEFT would save of this adapter."""
    with _usable(source):
        config = PeftConfig.from_pretrained(str(source.folder))
    if source.config.get("peft_type") == "ROW_SFT":
        # Nothing is to be scored.
        config.rows_in_checkpoint = config.inference_mode = True
    device = torch.device("meta") if base is None else nullcontext()
    if base is None:
        base = skeleton(source.model, source.head, head_settings(source, tensors))
    with _usable(source), device, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(base, config)
        expected = get_peft_model_state_dict(model, save_embedding_layers=False)
        without_wrappers(model.unload())
    return expected


@contextmanager
def _usable(source: Source) -> Iterator[None]:
    """A setting that PEFT cannot work with, such as a text for a number, is the file's fault."""
    try:
        yield
    except UserError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, ZeroDivisionError) as error:
        raise UserError(
            f"{source.folder / CONFIG} cannot be used ({type(error).__name__}: {shortened(error, 240)}); "
            "save the adapter again"
        ) from error


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
