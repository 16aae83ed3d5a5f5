"""`rowsft sweep`: many runs, a fresh process each, and in the end what is not done and why."""

import argparse

from rowsft.cli import signals
from rowsft.cli.arguments import add_config_folder

HELP = "run many jobs, a fresh process each"
EPILOG = """\
examples:
  rowsft sweep experiment=quickstart                          the runs of an experiment
  rowsft sweep method=lora,row_sft seed=1,2,3                 every combination: six jobs
  rowsft sweep method=lora,full budget.rows=1,2,4             four jobs: no budget applies to full, one run

keys of the sweep itself:
  tune.lr=[3e-5,1e-4,3e-4,1e-3,3e-3]   choose each setting's learning rate first, on validation (docs/tuning.md)
  tune.alpha=[8,16,32]       with tune.lr: choose method.alpha too, for LoRA and its relatives, each at a grid of rates
  hydra.launcher.jobs=2      jobs at once (default 1); memory and times compare at 1 alone, and each run records it
  hydra.launcher.threads=1   CPU threads of each job (default: all, divided by the jobs at once)

exit status: 0 all done, 1 some are not (the last lines name them and why), 2 bad input, 130 interrupted

"""


def add_arguments(parser: argparse.ArgumentParser, groups: str | None) -> None:
    """Add the arguments of `rowsft sweep`."""
    parser.epilog = EPILOG + (groups or "")
    parser.description = "Runs that are done are skipped; a failed run does not stop the others."
    parser.add_argument("overrides", nargs="*", metavar="group=name|key=a,b,c", help="Hydra overrides; commas sweep")
    parser.add_argument("--rerun", action="store_true", help="make new attempts of runs that are done")
    add_config_folder(parser)


def run(parsed: argparse.Namespace) -> int:
    """Run the jobs that the overrides span; 0 where all are done, else 1."""
    from rowsft.config.compose import sweep
    from rowsft.sweep import under_way

    under_way.begin(parsed.rerun)
    signals.on_signals()
    codes = sweep(parsed.overrides)
    bad = sum(code != 0 for code in codes)
    if under_way.sweep.failed:
        print("not done:", *under_way.sweep.failed, sep="\n  ")
    print(f"{len(codes)} job{'s' * (len(codes) != 1)}: {len(codes) - bad} done, {bad} not")
    return 1 if bad else 0
