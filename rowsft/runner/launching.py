"""The processes of a run in several, started on this machine by torch's own launcher, and how they ended."""

import logging
import math
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from rowsft.config.processes import LAUNCHER
from rowsft.errors import HELD, shortened
from rowsft.record import Error, State
from rowsft.runner import rank_failure
from rowsft.runner.rank_failure import RankFailure

# Seconds that the processes have for ending once they are told to, beside those for a checkpoint; then they are killed.
_END_SECONDS = 30
# Those that a run stops for: see rowsft/cli/signals.py.
_STOPS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR2") if hasattr(signal, name))


@dataclass(frozen=True)
class Ending:
    """How the processes of a run ended; `status` is rank 0's exit status where it has said itself why.

    state, error: what the record of an attempt that was left open is to say. user: bad input, of one process alone.
    """

    status: int | None = None
    state: State = "interrupted"
    error: Error = Error()
    user: bool = False


def launch(
    command: Sequence[str], processes: int, threads: int, stop_seconds: float, in_words: Callable[[int], str]
) -> Ending | None:
    """Run `command` (arguments of Python) in that many processes and wait; None where all of them came through.

    threads: CPU threads of each. stop_seconds: how long a process that is stopped may take for its checkpoint.
    in_words: an exit status for a reader. Where one process ends badly, the others are told to end, with SIGTERM; where
    this one gets SIGTERM, SIGINT or SIGUSR2, it passes the first of them on to all, and stays deaf to more.
    """
    # What went wrong is said once, by the caller.
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed.elastic")]:
        logging.getLogger(name).disabled = True
    with tempfile.TemporaryDirectory(prefix="rowsft-ranks-") as folder:
        others = dict.fromkeys(range(1, processes), Std.ALL)
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            monitor_interval=0.1,
            **_patience(math.ceil(_END_SECONDS + stop_seconds)),
            # One that nobody sends: torch's own handler lets a second signal cut short how the processes are ended.
            signals_to_handle="SIGQUIT",
            logs_specs=DefaultLogsSpecs(log_dir=folder, redirects={0: Std.NONE, **others}),
        )
        try:
            with _own_surroundings(threads):
                elastic_launch(config, sys.executable)(*command)
        except ChildFailedError as error:
            return _ending(error.failures, Path(folder), in_words)
        except SignalException as stop:
            message = f"stopped by {signal.Signals(stop.sigval).name}"
            stopped, own = Error(type="KeyboardInterrupt", message=message), _reported(Path(folder), 0)
            # Rank 0 was told the same: its account has the phase.
            return Ending(error=own.error if own is not None and own.error.type == stopped.type else stopped)
    return None


def _patience(seconds: int) -> dict[str, Any]:
    """The setting that says how long processes have for ending; older torch knows none and gives them 30 seconds."""
    known = {field.name for field in fields(LaunchConfig)}
    return {"shutdown_timeout": seconds} if "shutdown_timeout" in known else {}


@contextmanager
def _own_surroundings(threads: int) -> Iterator[None]:
    """What the processes find in the environment; afterwards it is as it was, and so is what signals do here.

    Where this process was stopped it stays deaf to further signals: how the run ended is still to be recorded.
    """
    handlers = {number: signal.signal(number, _stop) for number in _STOPS}
    before = dict(os.environ)
    os.environ[LAUNCHER] = str(os.getpid())
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
        for number, handler in handlers.items():
            if signal.getsignal(number) is _stop:
                signal.signal(number, handler)


def _stop(number: int, frame: object) -> None:
    for other in _STOPS:
        signal.signal(other, signal.SIG_IGN)
    name = signal.Signals(number)
    raise SignalException(f"stopped by {name.name}", sigval=name)


def _ending(failures: dict[int, ProcessFailure], folder: Path, in_words: Callable[[int], str]) -> Ending:
    said = {rank: _reported(folder, rank) for rank in failures}
    if 0 in failures and (failures[0].exitcode in (2, HELD) or (failures[0].exitcode > 0 and said[0] is None)):
        own = said[0] or RankFailure("interrupted", Error(), 0, False)
        return Ending(status=failures[0].exitcode, state=own.state, error=own.error)
    # What a signal killed could write nothing; the others' errors follow from that. Of errors the first counts.
    killed = [rank for rank, own in said.items() if own is None and failures[rank].exitcode != -signal.SIGTERM]
    known = {rank: own for rank, own in said.items() if own is not None}
    first = killed[0] if killed else min(known, key=lambda rank: known[rank].at, default=min(failures))
    who = f"rank {first} (process {failures[first].pid})"
    if first in known:
        return _of_error(known[first], None if first == 0 else who)
    message = f"{who} {in_words(failures[first].exitcode)}"
    if last := _last_line(folder, first):
        message = f"{message}; it said last: {last}"
    phase = known[0].error.phase if 0 in known else None
    return Ending(state="interrupted", error=Error(type="Killed", message=message, phase=phase))


def _of_error(own: RankFailure, who: str | None) -> Ending:
    message = f"{who}: {own.error.message}" if who else own.error.message
    return Ending(state=own.state, error=own.error.changed(message=message), user=own.user)


def _reported(folder: Path, rank: int) -> RankFailure | None:
    """What a process has written down of its end."""
    return next(map(rank_failure.read, folder.glob(f"*/attempt_0/{rank}/error.json")), None)


def _last_line(folder: Path, rank: int) -> str | None:
    for path in folder.glob(f"*/attempt_0/{rank}/stderr.log"):
        lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
        return shortened(lines[-1], 200) if lines else None
    return None
