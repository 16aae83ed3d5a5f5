"""Every job of a sweep in a fresh process of this machine; one that fails has its record, and the others go on."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue

from rowsft.config.devices import devices_for
from rowsft.errors import HELD, INTERRUPTED, UserError, shortened
from rowsft.record import Error
from rowsft.store import Store
from rowsft.store.identity import experiment_notes
from rowsft.store.lock import is_held
from rowsft.sweep import due, under_way
from rowsft.sweep.board import DONE, FAILED, RUNNING, Board, is_watched
from rowsft.sweep.ending import in_words, signal_of
from rowsft.sweep.jobs import SweepJob
from rowsft.sweep.orphans import STOP_WITH_PARENT


@dataclass
class _Live:
    """What a sweep must stop when it is stopped: its processes, and threads that wait for other sweeps.

    places: the numbers of the free ones among the places for jobs that run at once. warned: the warnings said so far.
    """

    board: Board
    places: SimpleQueue[int] = field(default_factory=SimpleQueue)
    processes: set[subprocess.Popen] = field(default_factory=set)
    stopping: threading.Event = field(default_factory=threading.Event)
    warned: set[str] = field(default_factory=set)


_live: _Live | None = None


def run_jobs(jobs: list[list[str]], at_once: int, threads: int | None) -> list[int]:
    """Run each job (a list of Hydra overrides) as `rowsft run`; returns their exit codes, 0 for those already done.

    Jobs that run side by side disturb each other's clocks; each records how many there were.
    """
    return due.run_due(jobs, lambda started: _run_here(started, len(jobs), at_once, threads))


def _run_here(started: list[SweepJob], of: int, at_once: int, threads: int | None) -> dict[int, int]:
    """Run the jobs in processes of this machine, `at_once` at a time."""
    global _live
    live = _live = _Live(Board(started, of))
    for place in range(max(1, at_once)):
        live.places.put(place)
    with live.board.drawn(under_way.console), ThreadPoolExecutor(max(1, at_once)) as pool:
        work = {job.number: pool.submit(_run_job, job, of, at_once, threads, live) for job in started}
        try:
            return {number: job.result() for number, job in work.items()}
        except KeyboardInterrupt:
            # Ctrl-C reaches the jobs by itself, a signal to this process alone does not: each ends with a record.
            pool.shutdown(wait=False, cancel_futures=True)
            stop()
            raise


def stop(within: float | None = None) -> None:
    """Stop the jobs that this process runs: they end by themselves, each with a record.

    within: the seconds in which they must have ended, or are killed; None does not wait.
    """
    if (live := _live) is None:
        return
    live.stopping.set()
    for process in list(live.processes):
        process.terminate()
    if within is not None:
        end = time.monotonic() + within
        while live.processes and time.monotonic() < end:
            time.sleep(0.2)
        for process in list(live.processes):
            process.kill()


def _run_job(job: SweepJob, of: int, at_once: int, threads: int | None, live: _Live) -> int:
    """The exit code of one job. If another sweep is at this very run its result will do; if it dies, this one tries."""
    label, spec = under_way.title(job, of), job.spec
    store = Store(spec.store)
    rerun = under_way.sweep.rerun
    while True:
        if is_held(spec.folder):
            under_way.say(f"{label}: another process is running it; waiting", "dim")
            while is_held(spec.folder):
                if live.stopping.wait(0.5):
                    return INTERRUPTED
            rerun = False
        if not rerun and spec.is_done:
            store.add_experiment(spec.run_id, spec.experiment, experiment_notes(spec.config))
            live.board.tell(job, DONE)
            under_way.say(f"{label}: done already ({spec.folder})", "dim")
            return 0
        if (why := None if rerun else due.left(job)) is not None:
            live.board.tell(job, FAILED)
            under_way.fail(job, of, why)
            return 1
        live.board.tell(job, RUNNING)
        under_way.say(f"{label}: started", "bold")
        process, errors = _start(job, rerun, at_once, threads, live)
        code = process.returncode
        if code == HELD:
            # Two processes started at the same moment and the other one got the run.
            continue
        live.board.tell(job, FAILED if code else DONE)
        # A sweep that is stopped stops its jobs: that they are not done is no news then.
        if code and not live.stopping.is_set():
            under_way.fail(job, of, _why(job, process, errors), "; the sweep goes on" * (job.number < of))
        elif _quiet(at_once) and not code:
            if is_watched(under_way.console):
                _pass_on(label, errors or "", live)
            under_way.say(f"{label}: done", "green")
        return code


def _pass_on(label: str, errors: str, live: _Live) -> None:
    """Say what a job that is done has warned of, once a sweep: the table stands where it would have been read."""
    for line in errors.splitlines():
        if line.startswith("rowsft: warning: ") and line not in live.warned:
            live.warned.add(line)
            under_way.say(f"{label}: {line.removeprefix('rowsft: ')}", "yellow")


def _why(job: SweepJob, process: subprocess.Popen, errors: str | None) -> str:
    """Why a job is not done, in a line. A job that was killed, or died without a record, gets its record here."""
    code, store = process.returncode, Store(job.spec.store)
    lines = [line for line in (errors or "").splitlines() if line.strip()]
    reason = shortened(lines[-1].removeprefix("rowsft: ").removeprefix("error: "), 300) if lines else in_words(code)
    if job.spec.measures:
        # The run is done whatever becomes of measuring it, and its record stays as it is.
        return in_words(code) if signal_of(code) else reason if lines else "it was not measured, said above"
    try:
        # A job that was interrupted ends by itself, with a record, unless it had none yet.
        if signal_of(code) and code != INTERRUPTED:
            reason = in_words(code)
            store.record_death(job.spec.config, process.pid, reason)
        elif latest := store.attempt_of(job.spec.run_id, process.pid):
            error = latest.error or Error()
            reason = shortened(f"{latest.state}: {error.type}: {error.message}", 300)
        elif code not in (2, INTERRUPTED):
            store.record_death(job.spec.config, process.pid, reason)
        elif not lines:
            reason = "bad input, said above" if code == 2 else "interrupted"
    except UserError as error:
        reason = f"{reason}; its record cannot be written: {error}"
    return reason


def _start(
    job: SweepJob, rerun: bool, at_once: int, threads: int | None, live: _Live
) -> tuple[subprocess.Popen, str | None]:
    """Run one process to its end; its stderr is kept where it would print across the table or jobs beside it."""
    command = [sys.executable, "-m", "rowsft.cli", "run", *(["--rerun"] if rerun else []), *job.overrides]
    environment = {**os.environ, "ROWSFT_CONCURRENT_JOBS": str(under_way.sweep.beside or at_once)}
    if under_way.sweep.beside is not None:
        # Whoever ends a worker means its job, too.
        environment[STOP_WITH_PARENT] = "1"
    if threads := threads_each(at_once, threads, environment):
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    quiet = subprocess.PIPE if _quiet(at_once) else None
    # A worker's log has what the job prints; why it failed goes back to the sweep.
    heard = quiet if under_way.sweep.beside is None else subprocess.PIPE
    place = live.places.get()
    try:
        trainer = job.spec.config["trainer"]
        processes = trainer["processes"] if trainer["strategy"] else 1
        environment |= devices_for(place, trainer["device"], processes=processes)
        process = subprocess.Popen(command, env=environment, stdout=quiet, stderr=heard, text=True, errors="replace")
        live.processes.add(process)
        _, errors = process.communicate()
        live.processes.discard(process)
    finally:
        live.places.put(place)
    return process, errors


def _quiet(at_once: int) -> bool:
    return at_once > 1 or is_watched(under_way.console)


def threads_each(at_once: int, asked: int | None, environment: Mapping[str, str]) -> int | None:
    """Return the CPU threads of each of several jobs at once: as asked, else their share of the processors.

    None leaves it to torch: for a job alone, and where OMP_NUM_THREADS says it already.
    """
    if asked or at_once == 1 or environment.get("OMP_NUM_THREADS"):
        return asked
    # Those that this process may use: a cluster gives a job some of the machine's.
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, usable // at_once)
