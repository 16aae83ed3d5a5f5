"""`rowsft report`: tables, picture and page from the recorded runs, or one run's memory by part."""

import argparse
from pathlib import Path

from rowsft.cli.arguments import add_store, path
from rowsft.cli.terminal import console, shown
from rowsft.errors import UserError
from rowsft.output import escape

HELP = "tables, picture and page from the recorded runs"


def add_arguments(parser: argparse.ArgumentParser, groups: str | None) -> None:
    """Add the arguments of `rowsft report`."""
    parser.add_argument(
        "what", nargs="*", metavar="memory RUN", help="instead: one run's memory by part, with a picture of its step"
    )
    add_store(parser)
    parser.add_argument("--experiment", help="only this experiment's runs (default: every run)")
    parser.add_argument("--out", type=path, help="folder (of memory: file) to write (default: under reports/)")


def run(parsed: argparse.Namespace) -> int:
    """Write the report's files and print its tables."""
    if parsed.what:
        return _memory(parsed)
    from rowsft import report

    out = parsed.out or Path("reports") / escape.file_name(parsed.experiment or "all")
    report.print_tables(report.build(parsed.store, parsed.experiment, out))
    return 0


def _memory(parsed: argparse.Namespace) -> int:
    if parsed.what[0] != "memory" or len(parsed.what) != 2:
        raise UserError(f"report {' '.join(parsed.what)}: expected `rowsft report` or `rowsft report memory RUN`")
    from rowsft.report import memory

    table, notes = memory.build(parsed.store, parsed.what[1], parsed.out)
    if table is not None:
        console().print(table)
    print("\n".join(shown(line) for line in notes))
    return 0
