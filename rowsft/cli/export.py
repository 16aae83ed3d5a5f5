"""`rowsft export`: a finished run's adapter for those who have no rowsft."""

import argparse
import sys

from rowsft.cli.arguments import add_store, path
from rowsft.cli.terminal import shown, without_warnings

HELP = "a finished run's adapter as a LoRA adapter or a merged checkpoint"


def add_arguments(parser: argparse.ArgumentParser, groups: str | None) -> None:
    """Add the arguments of `rowsft export`."""
    parser.add_argument("run", metavar="RUN", help="a run's id, or the folder of a saved adapter")
    parser.add_argument("--to", required=True, choices=("lora", "merged"), help="what to write")
    parser.add_argument("--out", type=path, metavar="FOLDER", help="new folder (default: exports/<run>-<to>)")
    add_store(parser)
    parser.add_argument(
        "--biases", choices=("keep", "refuse"), default="keep", help="trained biases in a LoRA adapter (default: keep)"
    )
    parser.add_argument(
        "--merge-into",
        choices=("quantised", "original"),
        help="of a run on a quantised base: the unpacked values of that base, or the weights before quantisation",
    )


def run(parsed: argparse.Namespace) -> int:
    """Write the export and print what it is."""

    def warn(text: str) -> None:
        print(f"rowsft: warning: {shown(text)}", file=sys.stderr)

    # transformers and PEFT tell of loading in their own words; what matters is said here.
    with without_warnings():
        from rowsft.export import export

        print(shown(export(parsed.run, parsed.to, parsed.out, parsed.store, parsed.biases, warn, parsed.merge_into)))
    return 0
