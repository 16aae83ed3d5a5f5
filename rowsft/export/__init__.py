"""A row-SFT adapter taken away to be served: as a standard LoRA adapter with the same change of W, or merged.

May import methods, models, config, report, store and selection. Must not need the data of the run.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from peft import PeftModel
from torch import Tensor, nn

from rowsft.errors import UserError
from rowsft.export import card, lora
from rowsft.export.intact import check_intact
from rowsft.export.merged import check_into, write_merged
from rowsft.export.source import Source, find
from rowsft.models.blueprint import skeleton
from rowsft.output import redact
from rowsft.store.files import explained

FORMATS = ("lora", "merged")

__all__ = ["FORMATS", "export", "to_lora"]


def export(
    run: str,
    to: str,
    out: Path | None,
    store: Path,
    biases: str = "keep",
    warn: Callable[[str], None] = print,
    into: str | None = None,
) -> Path:
    """Export a finished run (its id, or the beginning of it) or an adapter folder, with a model card; returns `out`.

    to: "lora" or "merged" (a plain transformers checkpoint with its tokenizer). out: a new folder; None takes
    exports/<run>-<to>. biases: "keep" or "refuse" trained biases in a LoRA adapter. warn: called with each one-line
    warning. into: "quantised" or "original", what an adapter of a quantised base is merged into. Raises UserError for a
    run that is unknown, unfinished or of a method that has nothing to export, and for a folder that exists.
    """
    source = find(run, store)
    if to == "merged":
        check_into(source, into)
    elif into is not None:
        raise UserError(f"--merge-into {into}: nothing is merged with --to {to}; leave it out, or use --to merged")
    out = out or Path("exports") / f"{Path(run).name}-{to}"
    _refuse_existing(out)
    with _new_folder(out) as folder:
        if to == "lora":
            source.check_converts()
            adapter = lora.convert(_checked(source), skeleton(source.model, source.head), biases)
            adapter.write(folder, source.config)
            for warning in [*adapter.warnings, *_of_quantised(source.model.get("quantize"))]:
                warn(warning)
        else:
            write_merged(source, folder, into)
            if into == "original":
                warn(
                    "merged into the weights before quantisation, which is another model than was trained and "
                    "evaluated; --merge-into quantised gives that one"
                )
        (folder / "README.md").write_text(card.text(source, to, run, into))
        redact.folder(folder)
    return out


def to_lora(model_or_folder: PeftModel | str | Path, out: str | Path, biases: str = "keep") -> list[str]:
    """Write a row-SFT adapter as a LoRA adapter that plain PEFT loads, with exactly the same change of every weight.

    model_or_folder: a PEFT model with its row-SFT adapter active, or the folder of a saved one. out: a new folder.
    biases: "keep" trained biases through PEFT's lora_bias, or "refuse" them. Returns one-line warnings about what some
    servers do not read. Raises UserError for another kind of adapter, an adapter that does not fit its base model,
    refused biases, and a folder that exists.
    """
    out = Path(out)
    _refuse_existing(out)
    if isinstance(model_or_folder, nn.Module):
        tensors, config = lora.active_adapter(model_or_folder)
        base = model_or_folder.get_base_model()
    else:
        source = find(str(model_or_folder), Path("runs"))
        source.check_converts()
        tensors, config, base = _checked(source), source.config, skeleton(source.model, source.head)
    adapter = lora.convert(tensors, base, biases)
    with _new_folder(out) as folder:
        adapter.write(folder, config)
    return [*adapter.warnings, *_of_quantised(config.get("base_quantization"))]


def _of_quantised(kind: str | None) -> list[str]:
    if kind is None:
        return []
    return [
        f"it is a change of the base in {kind}: on the weights before quantisation it is another model; load the base "
        "as the card says, or use --to merged --merge-into quantised"
    ]


def _checked(source: Source) -> dict[str, Tensor]:
    tensors = source.tensors()
    check_intact(source, tensors)
    return tensors


def _refuse_existing(out: Path) -> None:
    with explained(out):
        exists = out.exists()
    if exists:
        raise UserError(
            f"--out {out}: exists already, and an export overwrites nothing; remove it or name a new folder"
        )


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder that gets its name only when the block has come through."""
    with explained(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        # mkdtemp gives the owner alone access.
        temporary.chmod(0o755)
    try:
        yield temporary
        with explained(out.parent):
            temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
