"""`rowsft run`: one run, or what is known of it."""

import argparse
import os
import sys
from typing import TYPE_CHECKING

from rowsft.cli import ranks, signals, sweep
from rowsft.cli.arguments import add_config_folder
from rowsft.cli.terminal import shown, without_warnings
from rowsft.errors import INTERRUPTED, UserError
from rowsft.output import redact
from rowsft.sweep.orphans import stop_with_parent

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from rowsft.config.run_spec import RunSpec
    from rowsft.config.settings import TrainerSettings
    from rowsft.runner.context import Outcome
    from rowsft.store.run_log import RunLog

HELP = "train and evaluate one method"


def add_arguments(parser: argparse.ArgumentParser, groups: str | None) -> None:
    """Add the arguments of `rowsft run`."""
    parser.epilog = groups
    parser.description = "Compose a configuration, run it, record it. A run that is done already is not repeated."
    parser.add_argument("overrides", nargs="*", metavar="group=name|key=value", help="Hydra overrides")
    parser.add_argument("--rerun", action="store_true", help="make a new attempt although the run is done")
    parser.add_argument("--show-config", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument("-m", "--multirun", action="store_true", help="sweep over commas, as `rowsft sweep`")
    add_config_folder(parser)


def run(parsed: argparse.Namespace) -> int:
    """Run what the overrides describe, unless it is done; 0 where it is done then, else 1."""
    if parsed.multirun:
        return sweep.run(parsed)
    stop_with_parent()
    from rowsft.config.compose import compose
    from rowsft.config.devices import see_one
    from rowsft.config.processes import group_of, is_first
    from rowsft.config.run_spec import run_spec
    from rowsft.config.settings import trainer_settings
    from rowsft.store.run_log import RunLog

    config = compose(parsed.overrides)
    if parsed.show_config:
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml(OmegaConf.create(redact.config(OmegaConf.to_container(config)))), end="")
        return 0
    _refuse_untuned(config, parsed.overrides)
    settings = trainer_settings(config)
    spec = run_spec(config)
    processes = ranks.to_start(settings)
    # Several processes hear of it from the first of them, so that none waits for one that is gone.
    if group_of() is None and not parsed.rerun and _done_already(spec):
        return 0
    if processes is not None:
        return ranks.start(parsed, spec, processes)
    if settings.strategy is None:
        see_one(settings.device)
    ranks.watch_launcher()
    # The profiler warns of every tensor older than its window; the peak counts those apart.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Renamings announced by transformers concern its callers in PEFT, not the user.
    with RunLog() as log, without_warnings(FutureWarning, "transformers"):
        try:
            outcome = _run(parsed, spec, settings, log)
        except (Exception, KeyboardInterrupt) as error:
            if not ranks.is_watched() or isinstance(error, UserError):
                raise
            # The process that started this one says why, once it knows which of them ended first.
            signals.arrived()
            return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
    if not is_first():
        return 0
    if outcome.message:
        print(f"rowsft: {shown(outcome.message)}", file=sys.stderr)
    print(shown(f"{outcome.state}: run {outcome.run_id} in {outcome.folder}"))
    return 0 if outcome.state == "done" else 1


def _run(parsed: argparse.Namespace, spec: "RunSpec", settings: "TrainerSettings", log: "RunLog") -> "Outcome":
    # torch and transformers are imported only once the configuration is known to be good.
    import transformers

    from rowsft.runner import alone, stopping
    from rowsft.runner import run as runner
    from rowsft.runner.ranks import joined

    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    signals.on_signals(stopping.waits)
    group = joined(settings)
    if group.is_first:
        print(shown(spec.label), flush=True)

    def say(text: str) -> None:
        print(shown(text), flush=True)

    if spec.measures:
        return alone.measure_alone(spec, settings, parsed.rerun, say)
    outcome = runner.run(spec, settings, parsed.rerun, say, log, group)
    group.end()
    return outcome


def _refuse_untuned(config: "DictConfig", overrides: list[str]) -> None:
    """Raise UserError where a sweep's tuning stage is asked to choose rate or alpha: one run has no such stage."""
    from rowsft.config.tune import (
        ALPHA,
        LEARNING_RATE,
        SCALING,
        asks_for_a_rate,
        asks_for_an_alpha,
        named_alpha,
        named_rate,
    )
    from rowsft.config.typed import plain

    values = plain(config)
    if asks_for_a_rate(values) and named_rate(overrides) is None:
        # Without rates there are no alphas to try them at.
        none = "tune.lr=null tune.alpha=null" if values["tune"].get("alpha") else "tune.lr=null"
        raise UserError(
            f"tune.lr: the tuning stage of `rowsft sweep` chooses the rate; one run takes {LEARNING_RATE}=NUMBER, or "
            f"{none} for the rate that is configured ({config.trainer.learning_rate:g})"
        )
    if asks_for_an_alpha(values) and named_alpha(overrides) is None:
        raise UserError(
            f"tune.alpha: the tuning stage of `rowsft sweep` chooses alpha; one run takes {ALPHA}=NUMBER (with "
            f"{SCALING}=null where the method has that), or tune.alpha=null for what is configured"
        )


def _done_already(spec: "RunSpec") -> bool:
    """Whether the run is recorded as done, which is told without importing torch. Enters it in its experiment."""
    from rowsft.store import Store
    from rowsft.store.identity import experiment_notes

    if not spec.is_done:
        return False
    Store(spec.store).add_experiment(spec.run_id, spec.experiment, experiment_notes(spec.config))
    print(shown(spec.label))
    what = "measured alone" if spec.measures else "done"
    print(f"rowsft: {what} already (--rerun repeats it)", file=sys.stderr)
    print(shown(f"done: run {spec.run_id} in {spec.folder}"))
    return True
