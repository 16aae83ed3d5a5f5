"""`rowsft runs`: what the store holds."""

import argparse
import json

from rowsft.cli.arguments import add_store
from rowsft.cli.terminal import console
from rowsft.errors import UserError

HELP = "list what the store holds"


def add_arguments(parser: argparse.ArgumentParser, groups: str | None) -> None:
    """Add the arguments of `rowsft runs`."""
    add_store(parser)
    parser.add_argument("--experiment", help="only this experiment's runs")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")


def run(parsed: argparse.Namespace) -> int:
    """Print a line for each run. Raises UserError for a store or an experiment that is not there."""
    from rowsft.report import listing
    from rowsft.store import Store
    from rowsft.store.files import explained

    store = Store(parsed.store)
    with explained(parsed.store):
        is_folder = parsed.store.is_dir()
    if not is_folder:
        raise UserError(f"--store {parsed.store}: no such folder; give one that runs were recorded in")
    if parsed.experiment is not None and parsed.experiment not in (known := store.experiments()):
        text = ", ".join(known) or "none"
        raise UserError(f"--experiment {parsed.experiment}: no runs in store {parsed.store}; it has: {text}")
    if parsed.json:
        print(json.dumps([vars(run) for run in listing.runs_list(store, parsed.experiment)], indent=1))
    else:
        output = console()
        output.print(listing.runs_table(store, parsed.experiment, output.width))
    return 0
