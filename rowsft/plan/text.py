"""A plan as people and programs read it."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rowsft.measure.ledger import PARTS
from rowsft.plan import Plan
from rowsft.plan.devices import DEVICES
from rowsft.plan.fit import CONTEXT_BYTES, FRAGMENTATION

MIB = 2**20
GB = 10**9


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan for programs; units are in the names, bytes are those of tensors unless they say otherwise."""
    peak = plan.step.peak
    return {
        "method": plan.scene.method.name,
        "model": plan.scene.config.model.name,
        "device": "cuda" if plan.scene.gpu else "cpu",
        "batch_size": plan.scene.settings.batch_size,
        "length_tokens": plan.scene.length,
        "peak_bytes": plan.peak_bytes,
        "peak_phase": peak.phase,
        "parts": peak.parts,
        "phases": {
            name: {"peak_bytes": moment.total, "parts": moment.parts} for name, moment in plan.step.peaks.items()
        },
        "peak_bytes_bounds": plan.bounds or None,
        "selection_peak_bytes": plan.selection_bytes,
        "evaluation_peak_bytes": plan.evaluation_bytes,
        "flops": plan.step.costs.flops,
        "bytes_moved": plan.step.costs.bytes_moved,
        "roofline_step_seconds": {name: plan.step.costs.seconds(device) for name, device in DEVICES.items()},
        "trainable_parameters": plan.trainable.total() - plan.head_parameters,
        "head_parameters": plan.head_parameters,
        "total_parameters": plan.total.total(),
        "trainable_parameters_by_kind": dict(plan.trainable),
        "total_parameters_by_kind": dict(plan.total),
        "card_bytes_needed": plan.demand.card_bytes,
        "fits_card_gb": {str(size): fits for size, fits in plan.demand.cards().items()},
        "assumptions": plan.scene.assumptions,
    }


def show(plan: Plan, console: Console, advice: list[str]) -> None:
    """Print the plan."""
    scene, settings = plan.scene, plan.scene.settings
    console.print(
        f"[bold]{scene.method.name} on {scene.config.model.name}[/], one step of {settings.gradient_accumulation} x "
        f"{settings.batch_size} examples, {scene.length} tokens each, on a {'GPU' if scene.gpu else 'CPU'}"
    )
    for said in scene.assumptions:
        console.print(f"  assumed: {said}", style="dim")
    console.print("parameters by kind of layer")
    console.print(_parameters(plan))
    console.print("MiB of tensors at the peak of each phase")
    console.print(_memory(plan))
    if plan.bounds:
        ways = ", ".join(f"{name} {_mib(size)}" for name, size in plan.bounds.items())
        console.print(
            f"Which layers get their rows is known after scoring only; peak MiB for {ways}; the largest counts."
        )
    if plan.selection_bytes is not None:
        console.print(f"Scoring ({scene.method.importance}) needs {_mib(plan.selection_bytes)} MiB at its peak.")
    if plan.evaluation_bytes is not None:
        batch = settings.eval_batch_size
        console.print(f"Evaluating {batch} examples at a time needs {_mib(plan.evaluation_bytes)} MiB at its peak.")
    flops = plan.step.costs.flops
    console.print(f"{flops / 1e12:.3f} TFLOP a step. No step is faster than (roofline, from data sheets):")
    console.print(_speed(plan))
    console.print(_cards(plan))
    for line in advice:
        console.print(f"  {line}")


def _parameters(plan: Plan) -> Table:
    table = Table("layer kind")
    table.add_column("trainable", justify="right")
    table.add_column("of", justify="right")
    table.add_column("%", justify="right")
    for kind, total in plan.total.items():
        trained = plan.trainable.get(kind, 0)
        if trained:
            table.add_row(kind, f"{trained:,}", f"{total:,}", f"{100 * trained / total:.2f}")
    frozen = sum(total for kind, total in plan.total.items() if not plan.trainable.get(kind))
    if frozen:
        table.add_row("all others", "0", f"{frozen:,}", "0.00")
    trained, total = plan.trainable.total(), plan.total.total()
    table.add_section()
    table.add_row("all", f"{trained:,}", f"{total:,}", f"{100 * trained / total:.2f}")
    return table


def _memory(plan: Plan) -> Table:
    table = Table("part")
    for phase in plan.step.peaks:
        table.add_column(phase.replace("_", " "), justify="right")
    for part in PARTS:
        table.add_row(part.replace("_", " "), *[_mib(moment.parts[part]) for moment in plan.step.peaks.values()])
    table.add_section()
    table.add_row("all", *[_mib(moment.total) for moment in plan.step.peaks.values()], style="bold")
    return table


def _speed(plan: Plan) -> Table:
    table = Table(*DEVICES)
    table.add_row(*[f"{plan.step.costs.seconds(device):.3f} s" for device in DEVICES.values()])
    return table


def _cards(plan: Plan) -> Text:
    needs = plan.demand.card_bytes / GB
    cards = "  ".join(f"{size} GB {'fits' if fits else 'no'}" for size, fits in plan.demand.cards().items())
    return Text(
        f"Needs {needs:.1f} GB: tensors at the largest peak, {100 * FRAGMENTATION:.0f} % for fragmentation, "
        f"{CONTEXT_BYTES / GB:.0f} GB for the device's context.\n{cards}"
    )


def _mib(size: int) -> str:
    return f"{size / MIB:,.1f}"
