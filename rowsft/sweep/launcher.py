"""Start every job of a sweep in a process of its own, skip what is done, and go on after one fails."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue

from rich.console import Console

from rowsft.config.devices import devices_for
from rowsft.config.retrying import Retry, retry_policy
from rowsft.errors import HELD, INTERRUPTED, UserError, shortened
from rowsft.output import escape, redact
from rowsft.record import Error
from rowsft.store import Store
from rowsft.store.identity import experiment_notes
from rowsft.store.lock import is_held
from rowsft.sweep.board import DONE, FAILED, RUNNING, Board, is_watched
from rowsft.sweep.ending import in_words, signal_of
from rowsft.sweep.jobs import JobResolver, SweepJob
from rowsft.sweep.orphans import STOP_WITH_PARENT

console = Console(highlight=False, soft_wrap=True)


@dataclass
class Sweep:
    """What `rowsft sweep` was told besides overrides (Hydra builds launchers from configuration alone), and how its
    jobs ended: a line for each that is not done, and by number why.

    beside: on a worker of a cluster, which runs one job, how many run at once on all workers; None elsewhere.
    """

    rerun: bool = False
    beside: int | None = None
    failed: list[str] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)
    checked: tuple[list[list[str]], list[SweepJob]] = ([], [])
    resolver: JobResolver = field(default_factory=lambda: JobResolver(lambda text: say(text, "dim")))
    live: "_Live | None" = None


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


current = Sweep()


def check(jobs: list[list[str]]) -> list[SweepJob]:
    """Resolve the jobs. Raises UserError for the first that is wrong; nothing is written and nothing started."""
    if current.checked[0] != jobs:
        say(f"{len(jobs):,} job{'s' * (len(jobs) != 1)}: looking up which are done", "dim")
        current.checked = (jobs, current.resolver.resolve(jobs, current.rerun))
    return current.checked[1]


def run_jobs(jobs: list[list[str]], at_once: int, threads: int | None) -> list[int]:
    """Run each job (a list of Hydra overrides) as `rowsft run`; returns their exit codes, 0 for those already done.

    Jobs that run side by side disturb each other's clocks; each records how many there were.
    """
    return launched(jobs, lambda started: _run_here(started, len(jobs), at_once, threads))


def launched(jobs: list[list[str]], start: Callable[[list[SweepJob]], dict[int, int]]) -> list[int]:
    """Hand the jobs that have to be run to `start`, which gives exit codes by number; returns those of all jobs.

    Left out are jobs that are done, jobs that `retry` leaves as they are, and all but one of those that are the same
    run.
    """
    planned = check(jobs)
    started = [job for job in planned if job.same_as is None and not _skipped(job, len(jobs))]
    left = {job.number: why for job in started if not current.rerun and (why := _left(job)) is not None}
    for job in started:
        if job.number in left:
            fail(job, len(jobs), left[job.number])
    codes = dict.fromkeys(left, 1)
    if started := [job for job in started if job.number not in left]:
        codes |= start(started)
    for job in planned:
        if job.same_as is not None:
            codes[job.number] = _as_the_other(job, len(jobs), codes.get(job.same_as, 0))
    return [codes.get(job.number, 0) for job in planned]


def _run_here(started: list[SweepJob], of: int, at_once: int, threads: int | None) -> dict[int, int]:
    """Run the jobs in processes of this machine, `at_once` at a time."""
    live = current.live = _Live(Board(started, of))
    for place in range(max(1, at_once)):
        live.places.put(place)
    with live.board.drawn(console), ThreadPoolExecutor(max(1, at_once)) as pool:
        work = {job.number: pool.submit(_run_job, job, of, at_once, threads, live) for job in started}
        try:
            return {number: job.result() for number, job in work.items()}
        except KeyboardInterrupt:
            # Ctrl-C reaches the jobs by itself, a signal to this process alone does not: each ends with a record.
            pool.shutdown(wait=False, cancel_futures=True)
            stop()
            raise


def stop() -> None:
    """Stop the jobs that this process runs. They end by themselves, each with a record."""
    if (live := current.live) is not None:
        live.stopping.set()
        for process in list(live.processes):
            process.terminate()


def _skipped(job: SweepJob, of: int) -> bool:
    """Whether the job is done and not to be repeated: then it is entered in its experiment, and that is all."""
    if not job.done or current.rerun:
        return False
    _enter(job)
    say(f"{title(job, of)}: done already ({job.spec.folder})", "dim")
    return True


def _as_the_other(job: SweepJob, of: int, code: int) -> int:
    if job.done and not current.rerun:
        _skipped(job, of)
    elif code == 0:
        _enter(job)
        say(f"{title(job, of)}: the same run as [{job.same_as}/{of}] ({job.spec.folder})", "dim")
    else:
        fail(job, of, f"the same run as [{job.same_as}/{of}]")
    return code


def _enter(job: SweepJob) -> None:
    """Enter the run in the job's experiment, which costs nothing where it was in it when the job was planned."""
    name, notes = job.spec.experiment, redact.config(experiment_notes(job.spec.config))
    known = current.resolver.experiments(job) or {}
    noted = known.get("experiment_notes")
    if name not in (known.get("experiments") or []) or (notes and (noted or {}).get(name) != notes):
        Store(job.spec.store).add_experiment(job.spec.run_id, name, notes)


def _run_job(job: SweepJob, of: int, at_once: int, threads: int | None, live: _Live) -> int:
    """The exit code of one job. If another sweep is at this very run its result will do; if it dies, this one tries."""
    label, spec = title(job, of), job.spec
    store = Store(spec.store)
    rerun = current.rerun
    while True:
        if is_held(spec.folder):
            say(f"{label}: another process is running it; waiting", "dim")
            while is_held(spec.folder):
                if live.stopping.wait(0.5):
                    return INTERRUPTED
            rerun = False
        if not rerun and spec.is_done:
            store.add_experiment(spec.run_id, spec.experiment, experiment_notes(spec.config))
            live.board.tell(job, DONE)
            say(f"{label}: done already ({spec.folder})", "dim")
            return 0
        if (why := None if rerun else _left(job)) is not None:
            live.board.tell(job, FAILED)
            fail(job, of, why)
            return 1
        live.board.tell(job, RUNNING)
        say(f"{label}: started", "bold")
        process, errors = _start(job, rerun, at_once, threads, live)
        code = process.returncode
        if code == HELD:
            # Two processes started at the same moment and the other one got the run.
            continue
        live.board.tell(job, FAILED if code else DONE)
        # A sweep that is stopped stops its jobs: that they are not done is no news then.
        if code and not live.stopping.is_set():
            fail(job, of, _why(job, process, errors), "; the sweep goes on" * (job.number < of))
        elif _quiet(at_once) and not code:
            if is_watched(console):
                _pass_on(label, errors or "", live)
            say(f"{label}: done", "green")
        return code


def _left(job: SweepJob) -> str | None:
    """Why the job is not tried again, though it is not done; None where it is."""
    retry = retry_policy(job.spec.config)
    if retry == Retry():
        return None
    try:
        if is_held(job.spec.folder):
            return None
        state = Store(job.spec.store).get(job.spec.run_id).state
    except UserError:
        return None
    return retry.left(state) if retry.action(state) == "leave" else None


def _pass_on(label: str, errors: str, live: _Live) -> None:
    """Say what a job that is done has warned of, once a sweep: the table stands where it would have been read."""
    for line in errors.splitlines():
        if line.startswith("rowsft: warning: ") and line not in live.warned:
            live.warned.add(line)
            say(f"{label}: {line.removeprefix('rowsft: ')}", "yellow")


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
    environment = {**os.environ, "ROWSFT_CONCURRENT_JOBS": str(current.beside or at_once)}
    if current.beside is not None:
        # Whoever ends a worker means its job, too.
        environment[STOP_WITH_PARENT] = "1"
    if threads := threads_each(at_once, threads, environment):
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    quiet = subprocess.PIPE if _quiet(at_once) else None
    # A worker's log has what the job prints; why it failed goes back to the sweep.
    heard = quiet if current.beside is None else subprocess.PIPE
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
    return at_once > 1 or is_watched(console)


def threads_each(at_once: int, asked: int | None, environment: Mapping[str, str]) -> int | None:
    """Return the CPU threads of each of several jobs at once: as asked, else their share of the processors.

    None leaves it to torch: for a job alone, and where OMP_NUM_THREADS says it already.
    """
    if asked or at_once == 1 or environment.get("OMP_NUM_THREADS"):
        return asked
    # Those that this process may use: a cluster gives a job some of the machine's.
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, usable // at_once)


def fail(job: SweepJob, of: int, why: str, then: str = "") -> None:
    current.failed.append(f"{title(job, of)}: {why}")
    current.reasons[job.number] = why
    say(f"{title(job, of)}: {why}{then}", "yellow")


def title(job: SweepJob, of: int) -> str:
    return f"[{job.number}/{of}] {shortened(job.label, 200)}"


def say(text: str, style: str) -> None:
    text = escape.terminal(redact.text(text))
    if console.is_terminal:
        console.print(text, style=style, markup=False)
    else:
        # A thousand lines through Rich take a second.
        print(text, flush=True)
