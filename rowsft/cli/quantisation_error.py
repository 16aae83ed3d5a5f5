"""`rowsft quantisation-error`: how far a quantised base is from the weights, with what each adapter starts from."""

import argparse
import json
import shlex
import sys
from typing import TYPE_CHECKING

from rowsft.cli.arguments import add_config_folder, path
from rowsft.cli.terminal import console, shown, without_warnings
from rowsft.output import redact

if TYPE_CHECKING:
    from rowsft.quantisation_error import Measured

HELP = "how far a quantised base with its adapter is from the weights"
EPILOG = """\
starts, all within the same budget of parameters:
  plain              the quantised weights alone: QLoRA's start, whose adapter is zero
  rows by METRIC     rows (columns, units) kept exact: by method.importance, at random, those of the largest error
  LoftQ, PiSSA       an adapter of low rank and the quantised rest, after one and after all alternating steps

A metric that needs data (method.importance=taylor) scores with the whole model in memory; method.importance=l2 reads
one layer at a time, as all the rest does.
"""


def add_arguments(parser: argparse.ArgumentParser, groups: str | None) -> None:
    """Add the arguments of `rowsft quantisation-error`."""
    parser.epilog = EPILOG if groups is None else f"{EPILOG}\n{groups}"
    parser.description = (
        "The error of a model's quantised weights with the correction that each method starts from: Frobenius norm,\n"
        "absolute and relative, by layer and for the whole model. Trains nothing."
    )
    parser.add_argument("overrides", nargs="*", metavar="group=name|key=value", help="overrides, as of `rowsft run`")
    parser.add_argument("--quantiser", default="nf4", metavar="NAME", help="nf4 (default), nf4_double or int8")
    parser.add_argument("--backend", default="torch", metavar="NAME", help="torch (default) or bitsandbytes")
    parser.add_argument("--steps", type=int, default=5, metavar="N", help="alternating steps (default: 5)")
    parser.add_argument(
        "--adapter-dtype", default="float32", metavar="DTYPE", help="float32 (default), bfloat16, float16"
    )
    parser.add_argument(
        "--svd-iterations", type=int, metavar="N", help="approximate principal components by N subspace iterations"
    )
    parser.add_argument("--layers", type=int, default=0, metavar="N", help="print the first N layers too (default: 0)")
    parser.add_argument("--worst-first", action="store_true", help="layers by their plain relative error")
    parser.add_argument("--out", type=path, help="folder for errors.md, errors.json, model.csv and layers.csv")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    add_config_folder(parser)


def run(parsed: argparse.Namespace) -> int:
    """Measure what the overrides describe and print it. Raises UserError for what cannot be measured."""
    from rowsft.config.compose import compose
    from rowsft.config.settings import trainer_settings

    # Wrong names are told before torch is imported.
    config = compose(parsed.overrides)
    settings = trainer_settings(config)
    with without_warnings():
        from rowsft import quantisation_error
        from rowsft.quantisation_error import files
        from rowsft.runner.choosing import data_scores

        options = quantisation_error.Options(
            parsed.quantiser, parsed.backend, parsed.steps, parsed.adapter_dtype, parsed.svd_iterations
        )
        found = quantisation_error.measure(
            config, options, lambda of: data_scores(config, settings, of.method, of.rows)
        )
        written = []
        if parsed.out is not None:
            command = shlex.join(["rowsft", *map(redact.override, sys.argv[1:])])
            written = files.write(found, parsed.out, parsed.worst_first, command)
    if parsed.json:
        print(json.dumps(redact.config(found.as_dict(parsed.worst_first)), indent=1))
        return 0
    _show(found, parsed)
    for each in written:
        print(f"written: {shown(each)}")
    return 0


def _show(found: "Measured", parsed: argparse.Namespace) -> None:
    from rowsft.quantisation_error.tables import layer_sheet, model_sheet, notes
    from rowsft.report.columns import Sheet
    from rowsft.report.grid import grid, line

    output = console(200)
    sheets: list[Sheet] = [model_sheet(found)]
    if parsed.layers > 0:
        sheets.append(layer_sheet(found, found.sorted(parsed.worst_first)[: parsed.layers]))
    for sheet in sheets:
        output.print(line(sheet.title, "bold"))
        output.print(grid(sheet))
    for note in notes(found):
        output.print(line(note, "dim"))
    output.print(line(f"computed in {found.seconds:.1f} s", "dim"))
