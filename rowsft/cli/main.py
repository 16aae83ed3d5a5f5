"""The command line: which subcommands there are, and how each of them ends."""

import argparse
import os
import sys
from types import ModuleType

from rowsft import config_folders
from rowsft.cli import (
    compare,
    evaluate,
    export,
    fetch,
    init,
    plan,
    quantisation_error,
    report,
    run,
    runs,
    signals,
    sweep,
    task,
    track,
    tune,
)
from rowsft.cli.arguments import Parser, group_help, parsed_arguments
from rowsft.cli.terminal import shown
from rowsft.errors import HELD, INTERRUPTED, RunHeld, UserError, one_line, shortened

# In the order of the help. Each has HELP, add_arguments(parser, groups) and run(parsed) -> exit status.
COMMANDS: dict[str, ModuleType] = {
    "run": run,
    "sweep": sweep,
    "plan": plan,
    "quantisation-error": quantisation_error,
    "task": task,
    "report": report,
    "tune": tune,
    "runs": runs,
    "compare": compare,
    "eval": evaluate,
    "export": export,
    "track": track,
    "init": init,
    "fetch": fetch,
}
EPILOG = """\
examples:
  rowsft init my-experiments                                     a folder to start from, with configurations of your own
  rowsft run method=lora model=minilm task=glue/stsb seed=1      one run
  rowsft run method=row_sft budget.rows=32 trainer.steps=50      another size, fewer steps
  rowsft sweep experiment=quickstart                             the runs of an experiment, a fresh process each
  rowsft sweep method=lora,row_sft seed=1,2,3                    any Hydra sweep
  rowsft plan model=llama3_8b method=row_sft budget.rows=128     what a run would need, before it is run
  rowsft quantisation-error model=smollm2_135m                   how far 4-bit weights are off, by start
  rowsft task show glue/stsb                                     its examples as a model reads them, lengths, leaks
  rowsft report --experiment quickstart --out reports/quickstart tables, picture and page
  rowsft eval 3f2a --lm-eval boolq,piqa                          by lm-evaluation-harness, on the adapted model
  rowsft export 3f2a --to lora                                   a run's adapter, to be served without rowsft
  rowsft track replay --experiment quickstart                    the same runs for W&B, from their records
  rowsft compare 3f2a 9c01 --max-change test.accuracy=-0.01      what differs, what moved; fails if too much
"""


def main(arguments: list[str] | None = None) -> None:
    """Entry point.

    Exit status: 0 done, 1 a run failed or a comparison is over a limit, 2 bad input, 3 another process has the run, 130
    interrupted.
    """
    sys.exit(_guarded(sys.argv[1:] if arguments is None else arguments))


def _guarded(arguments: list[str]) -> int:
    try:
        return _dispatch(arguments)
    except UserError as error:
        print(f"rowsft: error: {shown(one_line(str(error)))}", file=sys.stderr)
        return HELD if isinstance(error, RunHeld) else 2
    except KeyboardInterrupt:
        signals.arrived()
        print("rowsft: interrupted; finished runs are untouched", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has seen enough; keep Python from complaining once more at shutdown.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        # A path that a user named and the system refuses: too long, no permission, a file where a folder is meant.
        print(f"rowsft: error: {shown(one_line(str(error)))}; check the paths of the command", file=sys.stderr)
        return 2


def _dispatch(arguments: list[str]) -> int:
    # The hub's library tells of each of its tries; what came of them is said in one line.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    for argument in arguments:
        # Bytes of another encoding reach Python as halves of characters, which no record and no terminal can hold.
        if not argument.isascii() and argument.encode("utf-8", "ignore").decode() != argument:
            raise UserError(f"{shortened(argument)}: not valid UTF-8; type it again in a UTF-8 terminal")
    with config_folders.chosen(_config_folder(arguments)):
        groups = group_help() if {"-h", "--help"} & set(arguments) else None
        parsed = parsed_arguments(parser_of(groups), arguments)
        return COMMANDS[parsed.command].run(parsed)


def _config_folder(arguments: list[str]) -> str | None:
    """What --config-dir names: the help lists the names of that folder before anything else is read."""
    early = Parser(prog="rowsft", add_help=False, allow_abbrev=False)
    early.add_argument("--config-dir")
    return early.parse_known_args(arguments)[0].config_dir


def parser_of(groups: str | None) -> argparse.ArgumentParser:
    """The parser of all commands. groups: what the help of those that take overrides says of the groups."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(
        prog="rowsft",
        formatter_class=raw,
        epilog=EPILOG,
        description="Does tuning a few rows match LoRA, DoRA and full fine-tuning, and at what memory and time?",
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        command.add_arguments(subparsers.add_parser(name, formatter_class=raw, help=command.HELP), groups)
    return parser


if __name__ == "__main__":
    main()
