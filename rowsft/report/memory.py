"""One run's memory: at every phase's peak what each part held, and the picture of one training step."""

import csv
from functools import partial
from pathlib import Path

from rich.table import Table
from rich.text import Text

from rowsft.errors import UserError
from rowsft.output import escape
from rowsft.output.quantities import MIB, mib
from rowsft.record import LedgerMoment, Memory, PhaseMemory, plain
from rowsft.report.damaged import or_none
from rowsft.report.drawing import figure, png
from rowsft.report.settings import failed_phase, failure, named
from rowsft.store.finding import find_run
from rowsft.store.record import FINAL_STATES, Record

# The parts from the bottom of the stack up, in Okabe and Ito's colour-blind safe palette.
COLOURS = {
    "base_weights": "#9aa0a6",
    "trainable_weights": "#D55E00",
    "optimizer_state": "#E69F00",
    "gradients": "#CC79A7",
    "saved_activations": "#0072B2",
    "temporary": "#56B4E9",
}


# The peaks of a phase in words, where a phase did not come to its end.
_REACHED = {
    "peak_allocated_bytes": "allocated",
    "peak_reserved_bytes": "reserved",
    "process_peak_bytes": "of the process on the GPU",
    "resident_peak_bytes": "resident",
}


def build(store: Path, run: str, out: Path | None) -> tuple[Table | None, list[str]]:
    """Return the ledger of a run as a table, of the phases that it came through, and lines that say what else there is.

    The PNG of its training step is written to `out` or reports/memory-<id>.png, where one was entered. A run that ended
    without a result says where, why, and what it held by then; one that came through no phase has no table. Raises
    UserError for an unknown run and one whose memory was not kept.
    """
    record = find_run(run, store)
    attempt = record.result or record.latest
    memory = attempt.memory if attempt else Memory()
    ledger = memory.ledger
    lines = [] if record.result else _ending(record, memory)
    if not ledger and not lines:
        raise UserError(f"run {record.id} has no memory ledger; run it with trainer.memory_probe_steps=1 and --rerun")
    points = record.file("memory")
    if points is None or not points.is_file():
        lines.append(f"no picture: {_why_no_picture(record, memory)}")
    else:
        path = out or Path("reports") / f"memory-{record.id}.png"
        drawn = or_none(partial(picture, points, record), record, "memory")
        if drawn is None:
            return table(ledger) if ledger else None, [*lines, f"no picture: {points} is damaged"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(drawn)
        lines.append(f"picture: {path}")
    return table(ledger) if ledger else None, lines


def _ending(record: Record, memory: Memory) -> list[str]:
    """Return how a run without a result ended, and what the phase that it ended in held by then."""
    if record.state not in FINAL_STATES or plain(memory) is None:
        return []
    phase = failed_phase(record)
    where = f" in {phase}" if phase else ""
    lines = [f"run {record.id} ended as {record.state}{where}: {failure(record)}"]
    # Loading is watched together with reading the data.
    peaks = getattr(memory, "load" if phase == "data" else phase or "", None)
    peaks = peaks if isinstance(peaks, PhaseMemory) else PhaseMemory()
    reached = {kind: getattr(peaks, key) for key, kind in _REACHED.items()}
    sizes = [f"{mib(size)} MiB {kind}" for kind, size in reached.items() if size is not None]
    return [*lines, f"by then: {', '.join(sizes)}"] if sizes else lines


def _why_no_picture(record: Record, memory: Memory) -> str:
    if record.result is None:
        return "a training step is entered once all else is done"
    if plain(memory.train) is None:
        return "nothing was trained"
    return "no training step was entered; run it with trainer.memory_probe_steps=1 and --rerun"


def table(ledger: dict[str, LedgerMoment]) -> Table:
    """Lay out the MiB by part at every phase's peak."""
    shown = Table("MiB at the peak")
    for phase in ledger:
        shown.add_column(Text(escape.terminal(phase.replace("_", " "))), justify="right")
    for part in COLOURS:
        shown.add_row(part.replace("_", " "), *[mib(moment.parts.get(part)) for moment in ledger.values()])
    shown.add_section()
    shown.add_row("all parts", *[mib(moment.peak_bytes) for moment in ledger.values()])
    shown.add_row("measured", *[mib(moment.measured_peak_bytes) for moment in ledger.values()])
    shown.add_row("unattributed", *[mib(moment.unattributed_bytes) for moment in ledger.values()])
    return shown


@escape.quiet_drawing()
def picture(points: Path, record: Record) -> bytes:
    """Draw one training step from left to right, the parts stacked; return PNG bytes."""
    with points.open(newline="") as file:
        rows = list(csv.DictReader(file))
    events = [int(row["event"]) for row in rows]
    stacks = [[int(row[f"{part}_bytes"]) / MIB for row in rows] for part in COLOURS]
    drawn = figure(9, 4.8)
    axis = drawn.subplots()
    axis.stackplot(events, stacks, colors=list(COLOURS.values()), labels=[part.replace("_", " ") for part in COLOURS])
    phases = [row["phase"] for row in rows]
    top = max(map(sum, zip(*stacks, strict=True)))
    for index in range(len(rows)):
        if index == 0 or phases[index] != phases[index - 1]:
            axis.axvline(events[index], color="#1c2024", linewidth=0.6)
            axis.text(events[index], top * 1.03, escape.picture(f" {phases[index].replace('_', ' ')}"), fontsize=8)
    axis.set(xlim=(events[0], events[-1]), ylim=(0, top * 1.1), ylabel="MiB", xlabel="allocations and releases in turn")
    names = [named(record.config, group) for group in ("method", "model", "task")]
    axis.set_title(escape.picture(f"memory of one training step: {' · '.join(names)}"), fontsize=10)
    handles, labels = axis.get_legend_handles_labels()
    axis.legend(handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
    return png(drawn)
