"""`rowsft plan`: a plan, a comparison or a sweep, printed for people or for programs."""

import argparse
import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from rowsft.cli.plan_text import as_json, show
from rowsft.config.compose import compose
from rowsft.config.instantiate import instantiated
from rowsft.config.settings import TrainerSettings, trainer_settings
from rowsft.errors import UserError
from rowsft.plan import Plan, page, plan
from rowsft.plan.advice import lighter_evaluation, memory_suggestions, too_large
from rowsft.plan.comparison import compare_methods
from rowsft.plan.fit import CARDS, Card, card_of
from rowsft.plan.lengths import Lengths, of_data, stated
from rowsft.plan.sweep import sweep
from rowsft.tasks import Task

# The card of a comparison that names none: a common data-centre size.
USUAL_CARD = "H100 80GB"


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
    console = Console(width=None if sys.stdout.isatty() else 200)
    if parsed.compare:
        return _compare(parsed, console, card or card_of(USUAL_CARD))
    if parsed.sweep:
        return _sweep(parsed, console)
    return _one(parsed, console, card)


def _one(parsed: argparse.Namespace, console: Console, card: Card | None) -> int:
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

    advice = []
    held = card or CARDS[-1]
    if planned.run.gpu:
        advice = [line for line in [lighter_evaluation(planned, again)] if line]
        if not planned.demand.fits(held):
            advice += [f"{too_large(planned, held)}. To fit it:", *memory_suggestions(planned, again, held)]
        elif card is not None:
            advice.append(f"{card} holds it.")
    show(planned, console, advice, beside)
    return 0


def _lengths(parsed: argparse.Namespace, config: DictConfig) -> Lengths:
    if parsed.length is not None or parsed.answer is not None:
        return stated(instantiated("task", config.task, Task), parsed.length, parsed.answer)
    return of_data(config)


def _beside(config: DictConfig, settings: TrainerSettings, lengths: Lengths) -> dict[str, Plan]:
    """Training planned for examples as long as most of the data are: the plan's own are as long as the longest."""
    found = {}
    for name, tokens in lengths.spread.get("tokens", {}).items():
        if tokens < lengths.tokens:
            shorter = lengths.at(tokens, lengths.spread.get("answer", {}).get(name))
            found[name] = plan(config, settings, training_only=True, lengths=shorter)
    return found


def _compare(parsed: argparse.Namespace, console: Console, card: Card) -> int:
    if named := [text for text in parsed.overrides if text.startswith("method")]:
        raise UserError(
            f"--compare {named[0]}: the methods are its own; leave the override out, or leave --compare out"
        )
    entries = []
    for entry in compare_methods(parsed.overrides, card, _lengths(parsed, compose(parsed.overrides))):
        entries.append(entry)
        print(f"planned {entry.title}", file=sys.stderr, flush=True)
    if parsed.json:
        found = [
            {"title": e.title, "largest_batch": e.largest_batch, "longest_tokens": e.longest_tokens, **as_json(e.plan)}
            for e in entries
        ]
        print(json.dumps({"card": card.name, "card_bytes": card.memory_bytes, "methods": found}, indent=1))
        return 0
    plans = {entry.title: entry.plan for entry in entries}
    name = entries[0].plan.run.config.model.name
    said = [*page.notes(entries[0].plan), page.SEARCHED]
    return _show(parsed, console, page.compared(entries, card), plans, f"{name}: methods at equal budget", said)


def _sweep(parsed: argparse.Namespace, console: Console) -> int:
    plans = sweep(parsed.overrides, parsed.sweep, lambda config: _lengths(parsed, config))
    if parsed.json:
        print(json.dumps({name: as_json(planned) for name, planned in plans.items()}, indent=1))
        return 0
    run = next(iter(plans.values())).run
    title = f"{run.config.model.name}: {run.method.name}, swept"
    return _show(parsed, console, page.swept(plans), plans, title, page.notes(next(iter(plans.values()))))


def _show(parsed: argparse.Namespace, console: Console, table: tuple, plans: dict, title: str, said: list[str]) -> int:
    console.print(page.terminal(*table))
    for note in said:
        console.print(f"  {note}", style="dim")
    # A plan alone draws nothing and need not wait for what draws.
    from rowsft.plan.picture import bars

    folder = parsed.out or Path("reports") / "plan"
    command = shlex.join(["rowsft", *sys.argv[1:]])
    try:
        written = page.write(folder, title, *table, said, bars(plans, title), command)
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be written ({error}); choose another folder") from error
    print(f"page: {written}   picture: {folder / 'memory.png'}")
    return 0
