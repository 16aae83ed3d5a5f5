"""A plan, a comparison or a sweep as a title, notes and tables of text: what terminal, page and picture show of it.

`as_json` has the same numbers for programs, in bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from rowsft.measure.ledger import PARTS
from rowsft.methods.base import calibrating
from rowsft.output.quantities import NONE, mib
from rowsft.plan import Plan
from rowsft.plan.comparison import Entry
from rowsft.plan.devices import DEVICES
from rowsft.plan.fit import CARDS, CONTEXT_BYTES, FRAGMENTATION, MIB, Card

_ASIDE = ("training peak", "scoring peak", "evaluating peak", "card needed")
_SEARCHED = "longest text: at the batch above, to within half a percent and up to the model's positions"


@dataclass(frozen=True)
class Table:
    """Cells as text. total: a last row apart from the others. words: how many of the first columns are words."""

    header: list[str]
    rows: list[list[str]]
    total: list[str] | None = None
    words: int = 1


@dataclass(frozen=True)
class Description:
    """title: what was planned; setting: under what, in one line; notes: what was assumed or holds for all of it;
    blocks: lines and tables in their order; peaks: name of a plan -> bytes by part at its peak."""

    title: str
    setting: str
    notes: list[str]
    blocks: list[str | Table]
    peaks: Mapping[str, Mapping[str, int]]

    @property
    def tables(self) -> list[Table]:
        """The tables among the blocks."""
        return [block for block in self.blocks if isinstance(block, Table)]


def of_plan(plan: Plan, beside: Mapping[str, Plan] = MappingProxyType({})) -> Description:
    """One plan. beside: training planned for examples of other lengths, by name."""
    run, settings = plan.run, plan.run.settings
    title = f"{run.method.name} on {run.config.model.name}"
    blocks: list[str | Table] = ["parameters by kind of layer", _parameters(plan)]
    blocks += ["MiB of tensors at the peak of each phase of a training step", _memory(plan)]
    if plan.bounds:
        ways = ", ".join(f"{name} {mib(size)}" for name, size in plan.bounds.items())
        blocks.append(
            f"Which layers get their rows is known after scoring only; peak MiB for {ways}; the largest counts."
        )
    for name, other in beside.items():
        peak = f"{mib(other.peak_bytes)} MiB at the peak"
        blocks.append(f"Were all examples as long as the {name} ({other.run.length} tokens): {peak}.")
    flops = plan.step.costs.flops
    blocks.append(f"{flops / 1e12:.3f} TFLOP a step. No step is faster than (roofline, from data sheets):")
    seconds = [f"{plan.step.costs.seconds(device):.3f} s" for device in DEVICES.values()]
    blocks.append(Table(list(DEVICES), [seconds], words=len(DEVICES)))
    blocks += ["Each stage of the run", _stages(plan), *_cards(plan), *_on_disk(plan)]
    return Description(
        title,
        f"one step of {settings.gradient_accumulation} x {settings.batch_size} examples, {run.length} tokens each, "
        f"on a {'GPU' if run.gpu else 'CPU'}",
        list(run.assumptions),
        blocks,
        {title: plan.step.peak.parts},
    )


def of_comparison(entries: Sequence[Entry], card: Card) -> Description:
    """Methods side by side: parameters, MiB by part at the peak, and what the card holds."""
    first = entries[0].plan
    header = [*_header("method"), f"largest batch on {card.name}", f"longest text on {card.name}"]
    rows = [
        [entry.title, *_sizes(entry.plan), _or_none(entry.largest_batch), _or_none(entry.longest_tokens)]
        for entry in entries
    ]
    return Description(
        f"{first.run.config.model.name}: methods at equal budget",
        _shared_setting(first),
        [*_shared_notes(first), _SEARCHED],
        [Table(header, rows)],
        {entry.title: entry.plan.step.peak.parts for entry in entries},
    )


def of_sweep(plans: Mapping[str, Plan]) -> Description:
    """One method under several values of a setting, by what was set."""
    first = next(iter(plans.values()))
    return Description(
        f"{first.run.config.model.name}: {first.run.method.name}, swept",
        _shared_setting(first),
        _shared_notes(first),
        [Table(_header("setting"), [[name, *_sizes(plan)] for name, plan in plans.items()])],
        {name: plan.step.peak.parts for name, plan in plans.items()},
    )


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
        "forgetting_peak_bytes": plan.forgetting.peak_bytes if plan.forgetting else None,
        "forgetting_disk_bytes": plan.forgetting.disk_bytes if plan.forgetting else None,
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


def _parameters(plan: Plan) -> Table:
    kinds = [(kind, plan.trainable.get(kind, 0), total) for kind, total in plan.total.items()]
    rows = [_share(kind, trained, total) for kind, trained, total in kinds if trained]
    if frozen := sum(total for _, trained, total in kinds if not trained):
        rows.append(_share("all others", 0, frozen))
    return Table(
        ["layer kind", "trainable", "of", "%"], rows, _share("all", plan.trainable.total(), plan.total.total())
    )


def _share(kind: str, trained: int, total: int) -> list[str]:
    return [kind, f"{trained:,}", f"{total:,}", f"{100 * trained / total:.2f}"]


def _memory(plan: Plan) -> Table:
    moments = plan.step.peaks.values()
    return Table(
        ["part", *(_in_words(phase) for phase in plan.step.peaks)],
        [[_in_words(part), *(mib(moment.parts[part]) for moment in moments)] for part in PARTS],
        ["all", *(mib(moment.total) for moment in moments)],
    )


def _stages(plan: Plan) -> Table:
    """The peak of every stage of the run, and what a card has to have for it."""
    settings, method = plan.run.settings, calibrating(plan.run.method)
    examples = {
        "training": f"{settings.batch_size} at a time",
        "scoring": f"{settings.batch_size} at a time, {method.importance if method else ''}",
        "evaluating": f"{settings.eval_batch_size} at a time",
        "forgetting": f"{settings.forgetting.batch_size} windows of {settings.forgetting.max_length} tokens at a time",
    }
    return Table(
        ["MiB", "examples", "tensors at the peak", "needed on a card"],
        [
            [stage, examples[stage], mib(demand.tensor_bytes), mib(demand.card_bytes)]
            for stage, demand in plan.demands.items()
        ],
        words=2,
    )


def _on_disk(plan: Plan) -> list[str]:
    size = plan.forgetting.disk_bytes if plan.forgetting else 0
    if not size:
        return []
    return [
        f"On disk, in the run's folder until it ends: {mib(size)} MiB for trainer.forgetting, the trained weights as "
        "they were before training and as they are after it."
    ]


def _cards(plan: Plan) -> list[str]:
    largest = max(plan.demands, key=lambda stage: plan.demands[stage].tensor_bytes)
    training = plan.demands["training"]

    def named(cards: list[Card]) -> str:
        return ", ".join(f"{card.name} {card.memory_bytes // MIB:,}" for card in cards)

    part = [card for card in CARDS if training.fits(card) and not plan.demand.fits(card)]
    return [
        f"The run needs {mib(plan.demand.card_bytes)} MiB on a card, for {largest}: tensors at the peak, "
        f"{100 * FRAGMENTATION:.0f} % for fragmentation, {CONTEXT_BYTES / MIB:,.0f} MiB for the device's context.",
        "fits (MiB that the card reports): " + (named([card for card in CARDS if plan.demand.fits(card)]) or "none"),
        *([f"training alone fits: {named(part)}"] if part else []),
        "too small: " + (named([card for card in CARDS if not training.fits(card)]) or "none"),
    ]


def _shared_setting(plan: Plan) -> str:
    settings = plan.run.settings
    return (
        f"one step of {settings.gradient_accumulation} x {settings.batch_size} examples of {plan.run.length} tokens, "
        f"gradient checkpointing {'on' if settings.gradient_checkpointing else 'off'}"
    )


def _shared_notes(plan: Plan) -> list[str]:
    """What holds for all plans beside `plan`."""
    return [
        *plan.run.assumptions,
        f"evaluated {plan.run.settings.eval_batch_size} at a time",
        f"all sizes in MiB; card needed: the largest of the peaks with {100 * FRAGMENTATION:.0f} % for fragmentation "
        f"and {CONTEXT_BYTES / MIB:,.0f} MiB for the device's context",
    ]


def _header(first: str) -> list[str]:
    return [first, "trainable", *map(_in_words, PARTS), *_ASIDE]


def _sizes(plan: Plan) -> list[str]:
    peaks = plan.peak_bytes, plan.selection_bytes, plan.evaluation_bytes, plan.demand.card_bytes
    sizes = [*(plan.step.peak.parts[part] for part in PARTS), *peaks]
    return [f"{plan.trainable.total() - plan.head_parameters:,}", *map(_brief, sizes)]


def _brief(size: int | None) -> str:
    return NONE if size is None else mib(size, ",.0f" if size >= 100 * MIB else ",.1f")


def _or_none(count: int | None) -> str:
    return "none fits" if count is None else f"{count:,}"


def _in_words(name: str) -> str:
    return name.replace("_", " ")
