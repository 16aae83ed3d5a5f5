"""`rowsft run` under `trainer.strategy`: it starts the processes and waits, or is one of them."""

import argparse
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

from rowsft.cli import signals
from rowsft.cli.terminal import shown
from rowsft.config.processes import LAUNCHER, check_group, group_of, processes_to_start
from rowsft.errors import INTERRUPTED, UserError

if TYPE_CHECKING:
    from rowsft.config.run_spec import RunSpec
    from rowsft.config.settings import TrainerSettings

#: Seconds between two looks at whether the launcher is still there.
_LOOK_SECONDS = 0.5


def to_start(settings: "TrainerSettings") -> int | None:
    """Return how many processes to start for the run; None where this process does it, alone or as one of them.

    Raises UserError where settings and processes do not fit.
    """
    group = group_of()
    check_group(settings, group[1] if group else None)
    if settings.strategy is None or group:
        return None
    processes = processes_to_start(settings)
    check_group(settings, processes)
    return processes


def is_watched() -> bool:
    """Return whether the `rowsft run` that has started this process waits for it, and says and records why it ends."""
    return group_of() is not None and os.environ.get(LAUNCHER) == str(os.getppid())


def start(parsed: argparse.Namespace, spec: "RunSpec", processes: int) -> int:
    """Run the command again in that many processes, and record how they ended; returns the exit status."""
    from rowsft.runner.launching import launch
    from rowsft.store import Store
    from rowsft.store.run_log import last_line
    from rowsft.sweep.ending import in_words
    from rowsft.sweep.launcher import threads_each

    command = ["-m", "rowsft.cli", "run", *(["--rerun"] if parsed.rerun else []), *parsed.overrides]
    if parsed.config_dir is not None:
        command += ["--config-dir", parsed.config_dir]
    threads = threads_each(processes, None, os.environ) or 1
    ending = launch(command, processes, threads, spec.config["trainer"]["checkpoint_stop_seconds"], in_words)
    if ending is None:
        return 0
    attempt = Store(spec.store).close_attempt(spec.run_id, ending.error, ending.state)
    reason = ending.error.message or ""
    if ending.error.type not in (None, "Killed"):
        reason = f"{ending.error.type}: {reason}"
    if attempt is not None:
        last_line(attempt, f"{(ending.error.traceback or reason).rstrip()}\n{ending.state}")
    if ending.status is not None:
        return ending.status
    if ending.user:
        raise UserError(ending.error.message or "")
    if ending.error.type == "KeyboardInterrupt":
        raise KeyboardInterrupt(ending.error.message)
    print(f"rowsft: {shown(reason)}", file=sys.stderr)
    print(shown(f"{ending.state}: run {spec.run_id} in {spec.folder}"))
    return 1


def watch_launcher() -> None:
    """Stop this process, with a record, once the `rowsft run` that has started it is gone; nothing for any other."""
    launcher = os.environ.get(LAUNCHER, "")
    if group_of() is None or not launcher.isdecimal():
        return
    threading.Thread(target=_watch, args=(int(launcher),), name="launcher", daemon=True).start()


def _watch(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(_LOOK_SECONDS)
    print("rowsft: the process that started this run is gone; it is stopped", file=sys.stderr)
    os.kill(os.getpid(), signal.SIGTERM)
    # What waits inside a library for a process that is gone never hears of it.
    time.sleep(signals.END_SECONDS)
    os._exit(INTERRUPTED)
