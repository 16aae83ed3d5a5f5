"""`rowsft runs`: what the store holds, and what can be asked of a single run."""

import argparse
import json
import sys
from pathlib import Path

from rowsft.cli.arguments import add_store, path
from rowsft.cli.terminal import console, shown
from rowsft.errors import UserError

HELP = "list what the store holds; explain, follow or remove runs"
EPILOG = """\
conditions:
  --where "method=lora state=failed"                 both hold
  --where "value>0.8 learning_rate<=1e-3"            the metric's value; a setting by its short name
  --where "model~llama budget.rows!=null"            ~ contains; null is what is not set or does not apply
  --where "started>=2026-11-26 task='my task'"       UTC; quotes around what has blanks
  --sort -value                                      the largest first

keys: id, state, method, model, task, seed, experiment, metric, split, value, started, seconds, attempts, reason,
folder; phase, step and steps of what runs; and every setting (trainer.learning_rate, budget.rows), whose group may be
left out where one key alone ends so.

"""


def add_arguments(parser: argparse.ArgumentParser, groups: str | None) -> None:
    """Add the arguments of `rowsft runs` and its subcommands."""
    add_store(parser)
    parser.add_argument("--experiment", help="only this experiment's runs")
    _add_where(parser, "only runs that this holds for")
    parser.add_argument("--sort", metavar="KEY", help="by this key, as in --where; -KEY from the largest down")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    parser.epilog = EPILOG
    parser.set_defaults(act=_list)
    subparsers = parser.add_subparsers(metavar="COMMAND", help="without one, list the runs")
    _add_explain(subparsers)
    _add_tail(subparsers)
    _add_rm(subparsers)


def run(parsed: argparse.Namespace) -> int:
    """Do what was asked. Raises UserError for a store, an experiment or a run that is not there."""
    if parsed.act is not _list and (parsed.experiment is not None or parsed.where or parsed.sort is not None):
        raise UserError(
            "--experiment, --where and --sort before a subcommand are of the list; give options after its name"
        )
    return parsed.act(parsed)


def _add_where(parser: argparse.ArgumentParser, text: str, name: str = "where") -> None:
    about = f"{text}; may be repeated"
    parser.add_argument("--where", dest=name, action="append", default=[], metavar="CONDITIONS", help=about)


def _list(parsed: argparse.Namespace) -> int:
    from rowsft.report import listing

    store = _store(parsed.store)
    if parsed.experiment is not None and parsed.experiment not in (known := store.experiments()):
        text = ", ".join(known) or "none"
        raise UserError(f"--experiment {parsed.experiment}: no runs in store {parsed.store}; it has: {text}")
    query = listing.Query(parsed.experiment, parsed.where, parsed.sort)
    if parsed.json:
        print(json.dumps([vars(run) for run in listing.runs_list(store, query)], indent=1))
    else:
        output = console()
        output.print(listing.runs_table(store, query, output.width))
    return 0


def _store(folder: Path):
    from rowsft.store import Store
    from rowsft.store.files import explained

    with explained(folder):
        is_folder = folder.is_dir()
    if not is_folder:
        raise UserError(f"--store {folder}: no such folder; give one that runs were recorded in")
    return Store(folder)


def _subcommand(subparsers, name: str, act, text: str, **options) -> argparse.ArgumentParser:
    """Add a subcommand. --store may stand before its name or after it, so here it has no default of its own."""
    parser = subparsers.add_parser(name, help=text, **options)
    parser.set_defaults(act=act)
    parser.add_argument("--store", type=path, default=argparse.SUPPRESS, help="the store to read (default: runs)")
    return parser


def _add_explain(subparsers) -> None:
    about = "Say what a run's id is made of, what was left out and why, and what the nearest run has otherwise."
    parser = _subcommand(subparsers, "explain", _explain, "what a run's id is made of", description=about)
    parser.add_argument("id", metavar="ID", help="a run's id or its beginning, or its folder")
    parser.add_argument("other", metavar="OTHER", nargs="?", help="what to hold it against (default: the nearest run)")
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON for programs")


def _explain(parsed: argparse.Namespace) -> int:
    from rowsft.report.explain import explain

    explanation = explain(parsed.store, parsed.id, parsed.other)
    if parsed.json:
        print(json.dumps(explanation.as_dict(), indent=1))
    else:
        print("\n".join(shown(line) for line in explanation.lines()))
    return 0


def _add_tail(subparsers) -> None:
    about = "Print the end of what a run has said, and what it says from then on until it is over."
    parser = _subcommand(subparsers, "tail", _tail, "follow the log of a run", description=about)
    parser.add_argument("id", metavar="ID", help="a run's id or its beginning, or its folder")
    parser.add_argument("-n", type=_count, default=10, metavar="N", help="begin with the last N lines (default: 10)")
    parser.add_argument("--no-follow", action="store_true", help="stop at the end of what is there")


def _tail(parsed: argparse.Namespace) -> int:
    from rowsft.store.finding import find_run
    from rowsft.store.following import log_lines

    record = find_run(parsed.id, parsed.store)
    for line in log_lines(record, parsed.n, not parsed.no_follow):
        print(shown(line), flush=True)
    if record.state == "running" and not parsed.no_follow:
        print(f"rowsft: run {record.id} is {find_run(str(record.folder), parsed.store).state}", file=sys.stderr)
    return 0


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of lines, 0 or more")
    return int(text)


def _add_rm(subparsers) -> None:
    about = "List runs with their sizes and remove them, if the answer is yes. Scores of the store stay."
    parser = _subcommand(subparsers, "rm", _rm, "remove runs", description=about)
    parser.add_argument("ids", metavar="ID", nargs="*", help="a run's id or its beginning, or its folder")
    _add_where(parser, "the runs that this holds for; of the named ones if there are any", "meant")
    parser.add_argument("--yes", action="store_true", help="do not ask")


def _rm(parsed: argparse.Namespace) -> int:
    from rowsft.output.quantities import MIB
    from rowsft.report import listing
    from rowsft.store import removal
    from rowsft.store.finding import find_run

    if not parsed.ids and not parsed.meant:
        raise UserError("runs rm: no run is named; give ids, or --where with what holds for the runs to remove")
    named = [find_run(run, parsed.store) for run in parsed.ids]
    records = list({record.folder: record for record in named or _store(parsed.store).runs()}.values())
    records = listing.chosen(records, parsed.meant)
    removal.check_free(records)
    sizes = {record.id: removal.size_bytes(record) for record in records}
    number, size = f"{len(records)} run{'s' * (len(records) != 1)}", f"{sum(sizes.values()) / MIB:,.1f} MiB"
    if not records:
        print("no run is meant; nothing was removed")
        return 0
    if not parsed.yes:
        console().print(listing.sized_table(records, sizes))
        if not sys.stdin.isatty():
            raise UserError(
                f"{number} ({size}): nothing was removed, for nobody can be asked here; add --yes to remove"
            )
        if not _agreed(f"remove {number} ({size})? [y/N] "):
            print("nothing was removed")
            return 0
    for record in records:
        whole = removal.remove(record)
        print(shown(f"removed: run {record.id} ({sizes[record.id] / MIB:,.1f} MiB)"))
        if not whole:
            aside = record.folder.parent / removal.ASIDE
            print(f"rowsft: warning: not all of it could be deleted; the rest is in {shown(aside)}", file=sys.stderr)
    return 0


def _agreed(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False
