"""`rowsft compare`: what differs between two runs or benchmark files, and whether it is within limits."""

import argparse
import json

from rowsft.cli.arguments import add_store
from rowsft.cli.terminal import console

HELP = "what differs between two runs or benchmark files"
EPILOG = """\
limits:
  --max-change test.accuracy=-0.01           fails if B is more than 0.01 below A
  --max-change step_seconds.median=+10%      fails if B is more than 10 % above A
  --max-change train.peak_allocated_bytes=+0 fails if B takes one byte more
  --max-change '*.flops=0'                   every name that matches: fails if any differs

NAME is a name of the table, or the end of one if no other ends so; . and _ count alike. With + a limit bounds a rise,
with - a fall, without a sign both; with % it is relative to A, without it is in the unit of the name (bytes, seconds,
joules). A number that one side has not measured fails.

exit status: 0 within the limits, 1 over one, 2 bad input
"""


def add_arguments(parser: argparse.ArgumentParser, groups: str | None) -> None:
    """Add the arguments of `rowsft compare`."""
    parser.epilog = EPILOG
    parser.description = "Print the settings that differ and by how much every number moved from A to B."
    parser.add_argument("a", metavar="A", help="a run's id or its beginning, its folder, or a benchmark's JSON file")
    parser.add_argument("b", metavar="B", help="what is held against it: another of the same kind")
    parser.add_argument("--max-change", action="append", metavar="NAME=LIMIT", help="fail beyond it; may be repeated")
    add_store(parser)
    parser.add_argument("--json", action="store_true", help="print JSON for programs")


def run(parsed: argparse.Namespace) -> int:
    """Print the comparison; 0 within the limits, 1 over one."""
    from rowsft.report.compare import compare, terminal

    comparison = compare(parsed.a, parsed.b, parsed.store, parsed.max_change)
    if parsed.json:
        print(json.dumps(comparison.as_dict(), indent=1))
    else:
        terminal.show(comparison, console())
    return 0 if comparison.within else 1
