"""`rowsft eval`: finished runs evaluated by lm-evaluation-harness."""

import argparse
import shlex

from rowsft.cli.arguments import add_config_folder, add_store, path
from rowsft.cli.terminal import console, shown, without_warnings

HELP = "evaluate finished runs by lm-evaluation-harness"


def add_arguments(parser: argparse.ArgumentParser, groups: str | None) -> None:
    """Add the arguments of `rowsft eval`."""
    parser.description = (
        "Score the models of finished runs, adapters on, by tasks of lm-evaluation-harness (extra: eval).\n"
        "Runs of one base model load it once. The results are added to the runs' records; nothing there is replaced."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's id or its beginning, or its folder")
    parser.add_argument("--lm-eval", required=True, metavar="TASK,...", help="the harness's tasks or groups")
    parser.add_argument("--include-path", type=path, metavar="DIR", help="a folder with tasks of your own, as its YAML")
    parser.add_argument("--limit", type=_count, metavar="N", help="the first N examples of each task alone")
    parser.add_argument("--batch-size", type=_count, default=8, metavar="N", help="answers at a time (default: 8)")
    add_store(parser)
    add_config_folder(parser)


def run(parsed: argparse.Namespace) -> int:
    """Evaluate, record, and print a table. Raises UserError for what cannot be evaluated."""
    from rowsft.harness.settings import Settings

    command = ["rowsft", "eval", *parsed.runs, "--lm-eval", parsed.lm_eval, "--batch-size", str(parsed.batch_size)]
    if parsed.include_path is not None:
        command += ["--include-path", str(parsed.include_path)]
    if parsed.limit is not None:
        command += ["--limit", str(parsed.limit)]
    settings = Settings(
        parsed.lm_eval.split(","), parsed.include_path, parsed.limit, parsed.batch_size, shown(shlex.join(command))
    )
    with without_warnings():
        from rowsft.cli.evaluate_text import results_table
        from rowsft.harness import evaluate_runs

        outcomes = []
        try:
            for outcome in evaluate_runs(parsed.runs, parsed.store, settings, say=lambda text: print(shown(text))):
                outcomes.append(outcome)
        finally:
            # What is recorded is shown, too, where a later run is refused.
            if outcomes:
                console().print(results_table(outcomes))
    return 0


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, 1 or more")
    return int(text)
