"""What was measured as tables: the model's, and a line for each layer."""

from collections.abc import Iterator

from rowsft.output import escape, redact
from rowsft.output.quantities import NONE, number
from rowsft.quantisation_error.result import PLAIN, LayerErrors, Measured, Part, StartError
from rowsft.report.columns import Column, Sheet
from rowsft.report.markdown import as_table


def model_sheet(found: Measured) -> Sheet[StartError]:
    """Return every start over all layers."""
    plain = found.model[0].whole.absolute
    title = f"{found.facts['quantiser']}, {len(found.layers)} layers: distance of the start from the weights"
    columns: list[Column[StartError]] = [
        Column("start", "start", lambda each: _title(each.start), kind="name"),
        Column("parameters", "adapter parameters", ","),
        Column("bits_per_weight", "bits per weight", ".3f"),
        Column("error", "error", lambda each: f"{each.whole.absolute:.5g}", direction="lower"),
        Column("relative", "relative", lambda each: _relative(each.whole), direction="lower"),
        Column("of_plain", "of plain", lambda each: f"{each.whole.absolute / plain:.4f}" if plain else NONE),
        Column("chosen", f"on rows by {found.facts['importance']}", lambda each: _relative(each.chosen)),
        Column("own", "on its own rows", lambda each: _relative(each.own)),
    ]
    return Sheet(title, columns, found.model)


def layer_sheet(found: Measured, layers: list[LayerErrors]) -> Sheet[LayerErrors]:
    """Return the relative error of every start in each of `layers`."""

    def of_start(index: int) -> Column[LayerErrors]:
        title = _title(found.model[index].start)
        return Column(f"start_{index}", title, lambda each: _relative(each.starts[index].whole))

    columns: list[Column[LayerErrors]] = [
        Column("layer", "layer", lambda each: redact.text(each.layer), kind="name"),
        Column("shape", "d_out x d_in", lambda each: f"{each.shape[0]} x {each.shape[1]}"),
        Column("rows", "rows", ","),
        Column("rank", "rank", ","),
        *map(of_start, range(len(found.model))),
    ]
    if any(each.columns for each in layers):
        columns.insert(3, Column("columns", "columns", ","))
    return Sheet("relative error by layer", columns, layers)


def notes(found: Measured) -> Iterator[str]:
    """Yield what has to be read beside the table."""
    facts = found.facts
    yield (
        f"{redact.text(facts['source'])} in {facts['dtype']}; {facts['quantiser']} by {facts['backend']}, adapters in "
        f"{facts['adapter_dtype']}; sizes by {facts['budget']}, channel {facts['channel']}, scope {facts['scope']}"
    )
    yield (
        "error: Frobenius norm of the weights minus base and adapter; relative: over that of the weights, here of the "
        f"same entries. Bits: codes, 32-bit scales and the adapter in {facts['adapter_dtype']}; ids of rows not counted"
    )
    yield f"rows drawn uniformly, expected relative error (plain times sqrt(1 - k/d_out)): {found.uniform:.4g}"
    for name, errors in found.steps.items():
        least = min(range(len(errors)), key=errors.__getitem__) + 1
        trend = "still falling" if least == len(errors) else f"least after {least}"
        listed = ", ".join(f"{error:.4g}" for error in errors)
        yield f"{name}, relative error after each step: {listed}" + (f" ({trend})" if len(errors) > 1 else "")
    yield from found.notes


def markdown(found: Measured, worst_first: bool, command: str) -> str:
    """Return both tables with their notes."""
    whole, by_layer = model_sheet(found), layer_sheet(found, found.sorted(worst_first))
    parts = [
        f"# {escape.markdown('Quantisation error: ' + redact.text(found.facts['source']))}",
        escape.code(command),
        f"**{escape.markdown(whole.title)}**",
        as_table(whole),
        "\n".join(f"- {escape.markdown(note)}" for note in notes(found)),
        f"**{escape.markdown(by_layer.title)}**",
        as_table(by_layer),
    ]
    return "\n\n".join(parts) + "\n"


def _title(start: str) -> str:
    return "plain (QLoRA: adapter 0)" if start == PLAIN else start


def _relative(part: Part | None) -> str:
    return NONE if part is None else number(part.relative, ".4g")
