"""`rowsft track`: runs on a W&B dashboard: written from records, uploaded, compared, laid out."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from rowsft.cli.arguments import add_store, path
from rowsft.cli.terminal import shown
from rowsft.errors import UserError

HELP = "the W&B mirror: write runs again, upload them, lay out the dashboard"
EPILOG = """\
examples:
  rowsft sweep experiment=quickstart tracker=wandb tracker.mode=offline    runs that are mirrored as they go
  rowsft track replay --experiment quickstart                              mirrors written from records, at any time
  rowsft track table --experiment quickstart                               the report's rows as a W&B table
  rowsft track workspace --out reports/workspace.json                      the dashboard, as a file
  rowsft track sync                                                        all of it uploaded, once there is an account
"""


def add_arguments(parser: argparse.ArgumentParser, groups: str | None) -> None:
    """Add the arguments of `rowsft track`."""
    parser.epilog = EPILOG
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, (_, text, add) in ACTIONS.items():
        add(actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + "."))


def run(parsed: argparse.Namespace) -> int:
    """Do what the action says; 1 where a run could not be uploaded or written."""
    return ACTIONS[parsed.action][0](parsed)


def _add_sync(parser: argparse.ArgumentParser) -> None:
    _add_folder(parser)
    _add_wait(parser, 300)


def _sync(parsed: argparse.Namespace) -> int:
    from rowsft.tracking.sync import sync

    done = sync(parsed.dir, _wait(parsed), say=lambda name: print(shown(f"uploaded {name}"), flush=True))
    for name, reason in done.failed.items():
        print(shown(f"rowsft: not uploaded: {name}: {reason}"), file=sys.stderr)
    print(f"{len(done.uploaded)} uploaded, {len(done.before)} were there, {len(done.failed)} failed")
    return 1 if done.failed else 0


def _add_replay(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="*", metavar="RUN", help="ids or their beginnings (default: all that have ended)")
    add_store(parser)
    parser.add_argument("--experiment", help="only this experiment's runs")
    _add_folder(parser)
    _add_project(parser)
    parser.add_argument("--log-adapter", action="store_true", default=None, help="the adapters too, as artifacts")


def _replay(parsed: argparse.Namespace) -> int:
    from rowsft.store import Store
    from rowsft.store.finding import find_run
    from rowsft.tracking.replay import replay, wandb_id

    store, failures = Store(parsed.store), 0
    if parsed.runs:
        records = [find_run(run, parsed.store) for run in parsed.runs]
    else:
        records = [record for record in store.runs(parsed.experiment) if wandb_id(record)]
    if not records:
        of = f" of experiment {parsed.experiment}" if parsed.experiment else ""
        raise UserError(f"--store {parsed.store}: no run{of} that has ended; give a store that `rowsft runs` lists")
    settings = {"project": parsed.project, "entity": parsed.entity, "log_adapter": parsed.log_adapter}
    for record in records:
        try:
            print(shown(f"written {replay(record, parsed.dir, **settings)}"), flush=True)
        except UserError as error:
            failures += 1
            print(shown(f"rowsft: {error}"), file=sys.stderr)
    print(f"{len(records) - failures} written, {failures} failed; `rowsft track sync` uploads them")
    return 1 if failures else 0


def _add_table(parser: argparse.ArgumentParser) -> None:
    add_store(parser)
    parser.add_argument("--experiment", help="only this experiment's runs (default: every run)")
    _add_folder(parser)
    _add_project(parser)


def _table(parsed: argparse.Namespace) -> int:
    from rowsft import report
    from rowsft.report.flat import table_rows
    from rowsft.tracking.comparison import write_comparison

    rows = table_rows(report.sections(parsed.store, parsed.experiment))
    settings = {"project": parsed.project, "entity": parsed.entity}
    name = write_comparison(rows, parsed.experiment, parsed.dir, **settings)
    print(shown(f"written {name}: {len(rows)} rows; `rowsft track sync` uploads it"))
    return 0


def _add_workspace(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=path, metavar="FILE", help="write it here (default: to W&B; reports/workspace.json without a key)"
    )
    parser.add_argument("--experiment", help="show only this experiment's runs (default: the project's)")
    _add_project(parser)
    _add_wait(parser, 60)


def _workspace(parsed: argparse.Namespace) -> int:
    from rowsft.tracking import workspace
    from rowsft.tracking.account import has_account

    project = parsed.project or "rowsft"
    out = parsed.out or (None if has_account() else Path("reports") / "workspace.json")
    if out is None:
        address = workspace.save(project, parsed.entity, parsed.experiment, _wait(parsed))
        print(shown(f"workspace: {address}"))
        return 0
    workspace.write(workspace.workspace(project, parsed.entity or "", parsed.experiment), out)
    print(shown(f"written {out}; after `wandb login`, `rowsft track workspace` makes it on W&B"))
    return 0


def _add_wait(parser: argparse.ArgumentParser, seconds: int) -> None:
    parser.add_argument(
        "--wait", type=float, default=seconds, metavar="SECONDS", help=f"how long to wait for the server ({seconds})"
    )


def _wait(parsed: argparse.Namespace) -> float:
    if not 0 < parsed.wait < 1e9:
        raise UserError(f"--wait {parsed.wait:g}: expected a number of seconds above 0")
    return parsed.wait


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dir", type=path, metavar="DIR", help="where W&B's folder `wandb` lies (default: WANDB_DIR, else here)"
    )


def _add_project(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--project", help="the W&B project (default: that of the runs, else rowsft)")
    parser.add_argument("--entity", help="user or team (default: that of the runs, else the account's)")


Action = tuple[Callable[[argparse.Namespace], int], str, Callable[[argparse.ArgumentParser], None]]
#: In the order of the help: what it does, in words, and its arguments.
ACTIONS: dict[str, Action] = {
    "sync": (_sync, "upload what offline runs wrote", _add_sync),
    "replay": (_replay, "write recorded runs as fresh offline runs", _add_replay),
    "table": (_table, "write the comparison of an experiment as a W&B table", _add_table),
    "workspace": (_workspace, "lay out the dashboard, on W&B or as a file", _add_workspace),
}
