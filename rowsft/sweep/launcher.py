"""Start every job of a sweep in a process of its own, skip what is done, and go on after one fails."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from rich.console import Console

from rowsft.cli import HELD
from rowsft.compose import compose
from rowsft.identity import RunPlan, plan_run
from rowsft.store import Store
from rowsft.store.identity import experiment_notes
from rowsft.store.lock import is_held

console = Console(highlight=False, soft_wrap=True)


@dataclass
class _Options:
    rerun: bool = False


@dataclass
class _Live:
    """What a sweep must stop when it is stopped: its processes, and threads that wait for other sweeps."""

    processes: set[subprocess.Popen] = field(default_factory=set)
    stopping: threading.Event = field(default_factory=threading.Event)


# What `rowsft sweep` was told besides overrides. Hydra builds launchers from configuration alone.
options = _Options()


def run_jobs(jobs: list[list[str]], at_once: int, threads: int | None) -> list[int]:
    """Run each job (a list of Hydra overrides) as `rowsft run`; returns their exit codes, 0 for those already done.

    Jobs that run side by side disturb each other's clocks; each records how many there were.
    """
    # Composing here finds a wrong name before the first job has cost an hour.
    planned = [(overrides, plan_run(compose(overrides))) for overrides in jobs]
    live = _Live()
    with ThreadPoolExecutor(max(1, at_once)) as pool:
        work = [
            pool.submit(_run_job, f"[{number}/{len(jobs)}]", overrides, plan, at_once, threads, live)
            for number, (overrides, plan) in enumerate(planned, start=1)
        ]
        try:
            return [job.result() for job in work]
        except KeyboardInterrupt:
            # Ctrl-C reaches the jobs by itself, a signal to this process alone does not: each ends with a record.
            pool.shutdown(wait=False, cancel_futures=True)
            live.stopping.set()
            for process in list(live.processes):
                process.terminate()
            raise


def _run_job(number: str, overrides: list[str], plan: RunPlan, at_once: int, threads: int | None, live: _Live) -> int:
    """The exit code of one job. If another sweep is at this very run its result will do; if it dies, this one tries."""
    told = " ".join(text for text in overrides if not text.startswith(("hydra", "experiment=", "+experiment=")))
    label = f"{number} {told or plan.label}"
    store = Store(plan.store)
    rerun = options.rerun
    while True:
        if is_held(plan.folder):
            _say(f"{label}: another process is running it; waiting", "dim")
            while is_held(plan.folder):
                if live.stopping.wait(0.5):
                    return 130
            rerun = False
        if not rerun and store.is_done(plan.run_id):
            store.add_experiment(plan.run_id, plan.experiment, experiment_notes(plan.config))
            _say(f"{label}: done already ({plan.folder})", "dim")
            return 0
        _say(f"{label}: started", "bold")
        process, errors = _start(overrides, rerun, at_once, threads, live)
        if process.returncode == HELD:
            # Two processes started at the same moment and the other one got the run.
            continue
        if process.returncode < 0:
            store.close_dead(plan.run_id, f"the process was killed by signal {-process.returncode}")
        if process.returncode:
            reason = f" ({errors.strip().splitlines()[-1]})" if errors and errors.strip() else ""
            _say(f"{number} ended with status {process.returncode}{reason}; the sweep goes on", "yellow")
        elif at_once > 1:
            _say(f"{number} done", "green")
        return process.returncode


def _start(
    overrides: list[str], rerun: bool, at_once: int, threads: int | None, live: _Live
) -> tuple[subprocess.Popen, str | None]:
    """Run one process to its end; its stderr is kept where jobs run side by side and would print across each other."""
    command = [sys.executable, "-m", "rowsft.cli", "run", *(["--rerun"] if rerun else []), *overrides]
    environment = {**os.environ, "ROWSFT_CONCURRENT_JOBS": str(at_once)}
    if threads:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    quiet = subprocess.PIPE if at_once > 1 else None
    process = subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet, text=True)
    live.processes.add(process)
    _, errors = process.communicate()
    live.processes.discard(process)
    return process, errors


def _say(text: str, style: str) -> None:
    console.print(text, style=style, markup=False)
