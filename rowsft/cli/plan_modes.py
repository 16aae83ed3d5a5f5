"""`rowsft plan`: a plan, a comparison or a sweep, printed for people or for programs."""

import argparse
import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from rowsft.cli.plan_text import show_plan, show_side_by_side
from rowsft.cli.terminal import console
from rowsft.config.compose import compose
from rowsft.config.instantiate import instantiated
from rowsft.config.settings import TrainerSettings, trainer_settings
from rowsft.errors import UserError
from rowsft.plan import Plan, page, plan
from rowsft.plan.advice import lighter_evaluation, memory_suggestions, too_large
from rowsft.plan.comparison import compare_methods
from rowsft.plan.description import Description, as_json, of_comparison, of_plan, of_sweep
from rowsft.plan.fit import CARDS, Card, card_of
from rowsft.plan.lengths import Lengths, of_data, stated
from rowsft.plan.sweep import sweep
from rowsft.tasks import Task

# The card of a comparison that names none: a common data-centre size.
USUAL_CARD = "H100 80GB"
# Where nobody watches, lines are as long as the widest table.
_COLUMNS = 200


def print_plan(parsed: argparse.Namespace) -> int:
    """Print the plan, comparison or sweep that `parsed` (overrides, json, card, ...) asks for; returns the exit status.

    Raises UserError for what cannot be planned.
    """
    card = None if parsed.card is None else card_of(str(parsed.card))
    if parsed.compare and parsed.sweep:
        raise UserError("--compare and --sweep are both given; expected one of them")
    drawn = (parsed.compare or parsed.sweep) and not parsed.json
    if parsed.out and not drawn:
        raise UserError(f"--out {parsed.out}: a page is drawn of --compare or --sweep, without --json; leave it out")
    if parsed.compare:
        return _compare(parsed, card or card_of(USUAL_CARD))
    if parsed.sweep:
        return _sweep(parsed)
    return _one(parsed, card)


def _one(parsed: argparse.Namespace, card: Card | None) -> int:
    config = compose(parsed.overrides)
    settings = trainer_settings(config)
    lengths = _lengths(parsed, config)
    planned = plan(config, settings, lengths=lengths)
    beside = _beside(config, settings, lengths)
    if parsed.json:
        print(json.dumps(as_json(planned, beside), indent=1))
        return 0

    def again(changes: Mapping[str, Any]) -> Plan:
        return plan(config, settings, changes, lengths=lengths)

    advice: list[str] = []
    largest = card or CARDS[-1]
    if planned.run.gpu:
        advice = [line for line in [lighter_evaluation(planned, again)] if line]
        if not planned.demand.fits(largest):
            advice += [f"{too_large(planned, largest)}. To fit it:", *memory_suggestions(planned, again, largest)]
        elif card is not None:
            advice.append(f"{card} holds it.")
    show_plan(of_plan(planned, beside), console(_COLUMNS), advice)
    return 0


def _lengths(parsed: argparse.Namespace, config: DictConfig) -> Lengths:
    if parsed.length is not None or parsed.answer is not None:
        return stated(instantiated("task", config.task, Task), parsed.length, parsed.answer)
    return of_data(config)


def _beside(config: DictConfig, settings: TrainerSettings, lengths: Lengths) -> dict[str, Plan]:
    """Training planned for examples as long as most of the data are: the plan's own are as long as the longest."""
    plans = {}
    for name, tokens in lengths.spread.get("tokens", {}).items():
        if tokens < lengths.tokens:
            shorter = lengths.at(tokens, lengths.spread.get("answer", {}).get(name))
            plans[name] = plan(config, settings, training_only=True, lengths=shorter)
    return plans


def _compare(parsed: argparse.Namespace, card: Card) -> int:
    if named := [text for text in parsed.overrides if text.startswith("method")]:
        raise UserError(
            f"--compare {named[0]}: the methods are its own; leave the override out, or leave --compare out"
        )
    entries = []
    for entry in compare_methods(parsed.overrides, card, _lengths(parsed, compose(parsed.overrides))):
        entries.append(entry)
        print(f"planned {entry.title}", file=sys.stderr, flush=True)
    if parsed.json:
        methods = [
            {"title": e.title, "largest_batch": e.largest_batch, "longest_tokens": e.longest_tokens, **as_json(e.plan)}
            for e in entries
        ]
        print(json.dumps({"card": card.name, "card_bytes": card.memory_bytes, "methods": methods}, indent=1))
        return 0
    return _show(parsed, of_comparison(entries, card))


def _sweep(parsed: argparse.Namespace) -> int:
    plans = sweep(parsed.overrides, parsed.sweep, lambda config: _lengths(parsed, config))
    if parsed.json:
        print(json.dumps({name: as_json(planned) for name, planned in plans.items()}, indent=1))
        return 0
    return _show(parsed, of_sweep(plans))


def _show(parsed: argparse.Namespace, plans: Description) -> int:
    show_side_by_side(plans, console(_COLUMNS))
    # A plan alone draws nothing and need not wait for what draws.
    from rowsft.plan.picture import bars

    folder = parsed.out or Path("reports") / "plan"
    command = shlex.join(["rowsft", *sys.argv[1:]])
    try:
        written = page.write(folder, plans, bars(plans), command)
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be written ({error}); choose another folder") from error
    print(f"page: {written}   picture: {folder / 'memory.png'}")
    return 0
