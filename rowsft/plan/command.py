"""`rowsft plan`: a plan, a comparison or a sweep, printed for people or for programs."""

import argparse
import json
import math
import shlex
import sys
from pathlib import Path

from rich.console import Console

from rowsft.compose import compose
from rowsft.errors import UserError
from rowsft.plan import page, plan
from rowsft.plan.advice import ways_out
from rowsft.plan.contest import contest
from rowsft.plan.fit import CARDS_GB
from rowsft.plan.sweep import sweep
from rowsft.plan.text import as_json, show
from rowsft.settings import trainer_settings

# The card of a comparison that names none: a common data-centre size.
USUAL_CARD_GB = 80


def run(parsed: argparse.Namespace) -> int:
    """Do what `parsed` (overrides, json, card, compare, sweep, out) asks for; returns the exit status.

    Raises UserError for what cannot be planned.
    """
    if parsed.card is not None and not 0 < parsed.card < math.inf:
        raise UserError(f"--card {parsed.card:g}: expected the card's memory in GB, such as 24")
    if parsed.compare and parsed.sweep:
        raise UserError("--compare and --sweep are both given; expected one of them")
    drawn = (parsed.compare or parsed.sweep) and not parsed.json
    if parsed.out and not drawn:
        raise UserError(f"--out {parsed.out}: a page is drawn of --compare or --sweep, without --json; leave it out")
    console = Console(width=None if sys.stdout.isatty() else 200)
    if parsed.compare:
        return _compare(parsed, console)
    if parsed.sweep:
        return _sweep(parsed, console)
    return _one(parsed, console)


def _one(parsed: argparse.Namespace, console: Console) -> int:
    config = compose(parsed.overrides)
    settings = trainer_settings(config)
    planned = plan(config, settings)
    if parsed.json:
        print(json.dumps(as_json(planned), indent=1))
        return 0
    card = parsed.card or max(CARDS_GB)
    advice = []
    if planned.scene.gpu and not planned.demand.fits(card):
        advice = [f"To fit {card:g} GB:", *ways_out(planned, lambda changes: plan(config, settings, changes), card)]
    show(planned, console, advice)
    return 0


def _compare(parsed: argparse.Namespace, console: Console) -> int:
    card = parsed.card or USUAL_CARD_GB
    if named := [text for text in parsed.overrides if text.startswith("method")]:
        raise UserError(
            f"--compare {named[0]}: the methods are its own; leave the override out, or leave --compare out"
        )
    entries = []
    for entry in contest(parsed.overrides, card):
        entries.append(entry)
        print(f"planned {entry.title}", file=sys.stderr, flush=True)
    if parsed.json:
        found = [
            {"title": e.title, "largest_batch": e.largest_batch, "longest_tokens": e.longest_tokens, **as_json(e.plan)}
            for e in entries
        ]
        print(json.dumps({"card_gb": card, "methods": found}, indent=1))
        return 0
    plans = {entry.title: entry.plan for entry in entries}
    name = entries[0].plan.scene.config.model.name
    said = [*page.notes(entries[0].plan), page.SEARCHED]
    return _show(parsed, console, page.compared(entries, card), plans, f"{name}: methods at equal budget", said)


def _sweep(parsed: argparse.Namespace, console: Console) -> int:
    plans = sweep(parsed.overrides, parsed.sweep)
    if parsed.json:
        print(json.dumps({name: as_json(planned) for name, planned in plans.items()}, indent=1))
        return 0
    scene = next(iter(plans.values())).scene
    title = f"{scene.config.model.name}: {scene.method.name}, swept"
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
