"""Start every job of a sweep in a process of its own, skip what is done, and go on after one fails."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from rich.console import Console

from rowsft.compose import compose
from rowsft.identity import RunPlan, plan_run
from rowsft.store import Store
from rowsft.store.identity import experiment_notes

console = Console(highlight=False, soft_wrap=True)


@dataclass
class _Options:
    rerun: bool = False


# What `rowsft sweep` was told besides overrides. Hydra builds launchers from configuration alone.
options = _Options()


def run_jobs(jobs: list[list[str]], at_once: int, threads: int | None) -> list[int]:
    """Run each job (a list of Hydra overrides) as `rowsft run`; returns their exit codes, 0 for those already done.

    Jobs that run side by side disturb each other's clocks; each records how many there were.
    """
    # Composing here finds a wrong name before the first job has cost an hour.
    planned = [(overrides, plan_run(compose(overrides))) for overrides in jobs]
    with ThreadPoolExecutor(max(1, at_once)) as pool:
        work = [
            pool.submit(_run_job, number, len(jobs), overrides, plan, at_once, threads)
            for number, (overrides, plan) in enumerate(planned, start=1)
        ]
        try:
            return [job.result() for job in work]
        except KeyboardInterrupt:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _run_job(number: int, total: int, overrides: list[str], plan: RunPlan, at_once: int, threads: int | None) -> int:
    told = " ".join(text for text in overrides if not text.startswith(("hydra", "experiment=", "+experiment=")))
    label = f"[{number}/{total}] {told or plan.label}"
    store = Store(plan.store)
    if not options.rerun and store.is_done(plan.run_id):
        store.add_experiment(plan.run_id, plan.experiment, experiment_notes(plan.config))
        console.print(f"{label}: done already ({plan.folder})", style="dim", markup=False)
        return 0
    console.print(f"{label}: started", style="bold", markup=False)
    command = [sys.executable, "-m", "rowsft.cli", "run", *(["--rerun"] if options.rerun else []), *overrides]
    environment = {**os.environ, "ROWSFT_CONCURRENT_JOBS": str(at_once)}
    if threads:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    quiet = at_once > 1
    done = subprocess.run(command, env=environment, capture_output=quiet, text=True, check=False)
    if done.returncode:
        if quiet:
            console.print(f"{label}: {done.stderr.strip().splitlines()[-1:] or 'no output'}", markup=False)
        if done.returncode < 0:
            store.close_dead(plan.run_id, f"the process was killed by signal {-done.returncode}")
        console.print(f"{label}: ended with status {done.returncode}; the sweep goes on", style="yellow", markup=False)
    elif quiet:
        console.print(f"{label}: done", markup=False)
    return done.returncode
