"""One run's memory: at every phase's peak what each part held, and the picture of one training step."""

import csv
import io
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from rowsft.errors import UserError
from rowsft.store.finding import find_run
from rowsft.store.record import Record

MIB = 2**20
# The parts from the bottom of the stack up, in Okabe and Ito's colour-blind safe palette.
COLOURS = {
    "base_weights": "#9aa0a6",
    "trainable_weights": "#D55E00",
    "optimizer_state": "#E69F00",
    "gradients": "#CC79A7",
    "saved_activations": "#0072B2",
    "temporary": "#56B4E9",
}


def build(store: Path, run: str, out: Path | None) -> tuple[Table, Path]:
    """The ledger of a run as a table, and the PNG of its step, written to `out` or reports/memory-<id>.png.

    Raises UserError for an unknown run and one whose ledger was not kept.
    """
    record = find_run(run, store)
    ledger = ((record.result or record.latest or {}).get("memory") or {}).get("ledger")
    if not ledger:
        raise UserError(f"run {record.id} has no memory ledger; run it with trainer.memory_probe_steps=1 and --rerun")
    path = out or Path("reports") / f"memory-{record.id}.png"
    points = record.file("memory")
    if points is None or not points.is_file():
        raise UserError(f"run {record.id} ended before its training step was entered; its phases: {', '.join(ledger)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(points, record))
    return table(ledger), path


def table(ledger: dict) -> Table:
    """MiB by part at every phase's peak."""
    shown = Table("MiB at the peak")
    for phase in ledger:
        shown.add_column(phase.replace("_", " "), justify="right")
    for part in COLOURS:
        shown.add_row(part.replace("_", " "), *[_mib(entry["parts"].get(part)) for entry in ledger.values()])
    shown.add_section()
    shown.add_row("all parts", *[_mib(entry["peak_bytes"]) for entry in ledger.values()])
    shown.add_row("measured", *[_mib(entry["measured_peak_bytes"]) for entry in ledger.values()])
    shown.add_row("unattributed", *[_mib(entry["unattributed_bytes"]) for entry in ledger.values()])
    return shown


def picture(points: Path, record: Record) -> bytes:
    """PNG bytes: one training step from left to right, the parts stacked."""
    with points.open(newline="") as file:
        rows = list(csv.DictReader(file))
    events = [int(row["event"]) for row in rows]
    stacks = [[int(row[f"{part}_bytes"]) / MIB for row in rows] for part in COLOURS]
    figure = Figure(figsize=(9, 4.8), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.stackplot(events, stacks, colors=list(COLOURS.values()), labels=[part.replace("_", " ") for part in COLOURS])
    phases = [row["phase"] for row in rows]
    top = max(map(sum, zip(*stacks, strict=True)))
    for index in range(len(rows)):
        if index == 0 or phases[index] != phases[index - 1]:
            axis.axvline(events[index], color="#1c2024", linewidth=0.6)
            axis.text(events[index], top * 1.03, f" {phases[index].replace('_', ' ')}", fontsize=8)
    axis.set(xlim=(events[0], events[-1]), ylim=(0, top * 1.1), ylabel="MiB", xlabel="allocations and releases in turn")
    names = [record.config[group]["name"] for group in ("method", "model", "task")]
    axis.set_title(f"memory of one training step: {' · '.join(names)}", fontsize=10)
    handles, labels = axis.get_legend_handles_labels()
    axis.legend(handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _mib(size: int | None) -> str:
    return "–" if size is None else f"{size / MIB:,.1f}"
