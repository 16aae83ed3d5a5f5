"""A plan as people and programs read it."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from rich import markup
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rowsft.measure.ledger import PARTS
from rowsft.methods.base import calibrating
from rowsft.output import escape
from rowsft.plan import Plan
from rowsft.plan.devices import DEVICES
from rowsft.plan.fit import CARDS, CONTEXT_BYTES, FRAGMENTATION, MIB


def as_json(plan: Plan, beside: Mapping[str, Plan] = MappingProxyType({})) -> dict[str, Any]:
    """The plan for programs; units are in the names, bytes are those of tensors unless they say otherwise.

    beside: training planned for examples of other lengths, by name.
    """
    peak = plan.step.peak
    return {
        "method": plan.run.method.name,
        "model": plan.run.config.model.name,
        "device": "cuda" if plan.run.gpu else "cpu",
        "batch_size": plan.run.settings.batch_size,
        "length_tokens": plan.run.length,
        "answer_tokens": plan.run.lengths.answer,
        "lengths": {"source": plan.run.lengths.source, **plan.run.lengths.spread},
        "training_peak_bytes_at": {name: other.peak_bytes for name, other in beside.items()},
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
        "card_bytes_needed_by_stage": {stage: demand.card_bytes for stage, demand in plan.demands.items()},
        "cards": {card.name: {"memory_bytes": card.memory_bytes, "fits": plan.demand.fits(card)} for card in CARDS},
        "assumptions": plan.run.assumptions,
    }


def show(plan: Plan, console: Console, advice: list[str], beside: Mapping[str, Plan] = MappingProxyType({})) -> None:
    """Print the plan; `beside` as in `as_json`."""
    run, settings = plan.run, plan.run.settings
    console.print(
        f"[bold]{_name(run.method.name)} on {_name(run.config.model.name)}[/], one step of "
        f"{settings.gradient_accumulation} x {settings.batch_size} examples, {run.length} tokens each, "
        f"on a {'GPU' if run.gpu else 'CPU'}"
    )
    for said in run.assumptions:
        console.print(f"  assumed: {said}", style="dim", markup=False)
    console.print("parameters by kind of layer")
    console.print(_parameters(plan))
    console.print("MiB of tensors at the peak of each phase of a training step")
    console.print(_memory(plan))
    if plan.bounds:
        ways = ", ".join(f"{name} {_mib(size)}" for name, size in plan.bounds.items())
        console.print(
            f"Which layers get their rows is known after scoring only; peak MiB for {ways}; the largest counts."
        )
    for name, other in beside.items():
        told = f"{_mib(other.peak_bytes)} MiB at the peak"
        console.print(f"Were all examples as long as the {name} ({other.run.length} tokens): {told}.")
    flops = plan.step.costs.flops
    console.print(f"{flops / 1e12:.3f} TFLOP a step. No step is faster than (roofline, from data sheets):")
    console.print(_speed(plan))
    console.print("Each stage of the run")
    console.print(_stages(plan))
    console.print(_cards(plan))
    for line in advice:
        console.print(f"  {line}", markup=False)


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


def _stages(plan: Plan) -> Table:
    """The peak of every stage of the run, and what a card has to have for it."""
    settings, method = plan.run.settings, calibrating(plan.run.method)
    detail = {
        "training": f"{settings.batch_size} at a time",
        "scoring": f"{settings.batch_size} at a time, {method.importance if method else ''}",
        "evaluating": f"{settings.eval_batch_size} at a time",
    }
    table = Table("MiB", "examples")
    table.add_column("tensors at the peak", justify="right")
    table.add_column("needed on a card", justify="right")
    for stage, demand in plan.demands.items():
        table.add_row(stage, detail[stage], _mib(demand.tensor_bytes), _mib(demand.card_bytes))
    return table


def _cards(plan: Plan) -> Text:
    largest = max(plan.demands, key=lambda stage: plan.demands[stage].tensor_bytes)
    only_training = plan.demands["training"]
    said = [f"The run needs {_mib(plan.demand.card_bytes)} MiB on a card, for {largest}:"]
    said[0] += f" tensors at the peak, {100 * FRAGMENTATION:.0f} % for fragmentation,"
    said[0] += f" {CONTEXT_BYTES / MIB:,.0f} MiB for the device's context."
    fits = [f"{card.name} {card.memory_bytes // MIB:,}" for card in CARDS if plan.demand.fits(card)]
    part = [card for card in CARDS if only_training.fits(card) and not plan.demand.fits(card)]
    none = [f"{card.name} {card.memory_bytes // MIB:,}" for card in CARDS if not only_training.fits(card)]
    said.append(f"fits (MiB that the card reports): {', '.join(fits) or 'none'}")
    if part:
        said.append(f"training alone fits: {', '.join(f'{card.name} {card.memory_bytes // MIB:,}' for card in part)}")
    said.append(f"too small: {', '.join(none) or 'none'}")
    return Text("\n".join(said))


def _name(name: str) -> str:
    """A name for rich, which would take square brackets for its own."""
    return markup.escape(escape.terminal(name))


def _mib(size: int) -> str:
    return f"{size / MIB:,.1f}"
