"""What was found in a task's data, on a terminal or as plain text."""

from collections.abc import Iterator

from rich import table as rich
from rich.console import Console
from rich.text import Text

from rowsft.cli.terminal import shown
from rowsft.errors import shortened
from rowsft.output import redact
from rowsft.output.escape import visible
from rowsft.output.quantities import NONE, number
from rowsft.tasks.inspection import Inspection, Quantiles, Rendered, SplitFacts

# Blanks as signs; a line break breaks the line as well.
_SIGNS = {" ": "·", "\t": "⇥", "\n": "⏎"}
_LOSS, _SPECIAL, _BOUNDARY = "bold black on green", "magenta", "dim"
_PAIRS_SHOWN = 5


def show_inspection(found: Inspection, model: str, output: Console) -> None:
    """Print examples, then tables: splits, labels, what splits share."""
    coloured = output.color_system is not None and not output.no_color
    output.print(Text(f"{shown(found.name)}: {found.head}, read by the tokenizer of {model}"))
    for key in ("source", "licence", "caveat"):
        if found.about.get(key):
            output.print(Text(f"  {key}: {shown(found.about[key])}"), soft_wrap=True)
    for name, split in found.splits.items():
        for example in split.rendered:
            output.print()
            output.print(_heading(name, example))
            for line in _lines(example, coloured):
                output.print(line, soft_wrap=True)
    if not found.evaluates_as_trained:
        output.print("\nEvaluation reads other sequences than these: every answer that may be right after its prompt.")
    output.print()
    output.print(_splits(found))
    if (labels := _labels(found)) is not None:
        output.print(labels)
    for note in _notes(found):
        output.print(Text(note), soft_wrap=True)


def _heading(split: str, example: Rendered) -> Text:
    parts = [f"{split} {shown(example.id)}"]
    if example.tokens is not None:
        loss = "" if example.loss_tokens is None else f", {example.loss_tokens} of them with loss"
        parts.append(f"{example.tokens} tokens{loss}")
    if example.label is not None:
        parts.append(f"label {shown(example.label)}")
    return Text("; ".join(parts), style="bold")


def _lines(example: Rendered, coloured: bool) -> Iterator[Text]:
    """The pieces with their marks, broken where the text breaks."""
    for name, shape in example.inputs.items():
        yield Text(f"  {name}: {' x '.join(map(str, shape))}")
    whole = "".join(piece.text for piece in example.pieces)
    if redact.text(whole) != whole:
        yield Text(f"  {shown(whole)} (holds a secret, so it is shown without its tokens)")
        return
    line, within = Text("  "), False
    for index, piece in enumerate(example.pieces):
        if piece.loss != within and not coloured:
            line.append("⟦" if piece.loss else "⟧")
        elif index:
            line.append("|", style=_BOUNDARY)
        within = piece.loss
        style = _LOSS if piece.loss and coloured else _SPECIAL if piece.special else ""
        for part in _split(f"‹{piece.text}›" if piece.special else piece.text):
            line.append(part, style=style)
            if part.endswith("⏎"):
                yield line
                line = Text("  ")
    if within and not coloured:
        line.append("⟧")
    if line.plain.strip():
        yield line


def _split(text: str) -> list[str]:
    """The text with its blanks as signs, cut after each line break."""
    signs = "".join(_SIGNS.get(character) or visible(character) for character in text)
    return [part for part in signs.replace("⏎", "⏎\n").split("\n") if part]


def _splits(found: Inspection) -> rich.Table:
    longer = "longer" if found.max_length is None else f"longer than {found.max_length:,}"
    has_loss = any(split.lengths and split.lengths.answer for split in found.splits.values())
    table = rich.Table()
    table.add_column("split")
    for name in ("examples", "tokens p50 / p95 / max", *(["with loss"] if has_loss else []), longer, "repeated"):
        table.add_column(name, justify="right")
    for name, split in found.splits.items():
        lengths = split.lengths
        cells = [_quantiles(lengths.tokens if lengths else None)]
        if has_loss:
            cells.append(_quantiles(lengths.answer if lengths else None))
        table.add_row(name, f"{split.examples:,}", *cells, number(split.longer, ","), f"{split.repeated:,}")
    return table


def _quantiles(lengths: Quantiles | None) -> str:
    return f"{lengths.p50:,} / {lengths.p95:,} / {lengths.max:,}" if lengths else NONE


def _labels(found: Inspection) -> rich.Table | None:
    """A line for each class, or for the range of numbers; None where no split has labels that are numbers."""
    labels = {name: split.labels for name, split in found.splits.items()}
    if not any(labels.values()):
        return None
    table = rich.Table()
    table.add_column("label")
    for name in labels:
        table.add_column(name, justify="right")
    classes = dict.fromkeys(name for one in labels.values() if one and one.counts for name in one.counts)
    for name in classes:
        table.add_row(Text(shown(name)), *(_share(split, name) for split in found.splits.values()))
    if not classes:
        for key in ("least", "mean", "most"):
            table.add_row(key, *(f"{getattr(one, key):g}" if one else NONE for one in labels.values()))
    return table


def _share(split: SplitFacts, name: str) -> str:
    counts = split.labels.counts if split.labels else None
    return f"{counts.get(name, 0):,} ({counts.get(name, 0) / split.examples:.1%})" if counts else NONE


def _notes(found: Inspection) -> Iterator[str]:
    """What was left out or warned of while reading, and what splits share."""
    for key, value in _flat(found.about.get("counts") or {}):
        if value:
            yield f"{key}: {value:,}"
    for text in found.about.get("warnings") or []:
        yield f"warning: {shown(text)}"
    for leak in found.leaks:
        how = "the model reads the same" if leak.kind == "exact" else "the same but for case, blanks and punctuation"
        pairs = ", ".join(f"{later} = {earlier}" for later, earlier in leak.pairs[:_PAIRS_SHOWN])
        more = f", and {leak.count - _PAIRS_SHOWN:,} more (--json has all)" if leak.count > _PAIRS_SHOWN else ""
        total = found.splits[leak.later].examples
        yield f"leak: {leak.count:,} of {total:,} {leak.later} examples are in {leak.earlier} too, {how}: " + (
            shown(shortened(pairs, 400)) + more
        )
    if not found.leaks:
        yield "overlap between splits: none, exactly and after normalisation"


def _flat(counts: dict, prefix: str = "") -> Iterator[tuple[str, int]]:
    for key, value in counts.items():
        name = f"{prefix} {key}".strip().replace("_", " ")
        if isinstance(value, dict):
            yield from _flat(value, name)
        elif isinstance(value, int):
            yield name, value
