"""`rowsft tune`: the learning rate that a tuning grid chose for each method."""

import argparse

from rowsft.cli.arguments import add_store

HELP = "each method's best learning rate in a tuning grid, on validation"


def add_arguments(parser: argparse.ArgumentParser, groups: str | None) -> None:
    """Add the arguments of `rowsft tune`."""
    parser.add_argument("experiment", help="the grid's experiment name, e.g. quickstart_grid")
    add_store(parser)


def run(parsed: argparse.Namespace) -> int:
    """Print the rates as they are put into an experiment."""
    from rowsft.report import tuning

    print(tuning.best_learning_rates(parsed.store, parsed.experiment))
    return 0
