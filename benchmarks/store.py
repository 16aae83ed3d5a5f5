"""CPU seconds of everything that does not train, against the number of recorded runs.

python benchmarks/store.py                         100, 1,000 and 10,000 runs (about ten minutes)
python benchmarks/store.py --runs 100,1000         a quick look

Each command runs in a process of its own, from a cold start; user and system time are added up, so other work on the
machine hardly counts. `sweep` skips as many jobs as there are runs; `report` is left out above --most-reported runs.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from planted import ENVIRONMENT, result
from tables import table

from rowsft.config.compose_many import ManyComposer
from rowsft.config.run_spec import run_spec
from rowsft.store import Store
from rowsft.store.places import Places

TASK = ["experiment_name=planted", "task=sentiment", "model=minilm"]
EXAMPLES = 200


def main() -> None:
    """Plant, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default="100,1000,10000", help="how many, separated by commas")
    parser.add_argument("--most-reported", type=int, default=1000, help="no report of more runs than these")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    given = parser.parse_args()
    counts = [int(count) for count in given.runs.split(",")]
    found = {count: measured(count, given.most_reported) for count in counts}
    names = list(next(iter(found.values())))
    cells = [
        [name, *("–" if found[count][name] is None else f"{found[count][name]:.2f}" for count in counts)]
        for name in names
    ]
    print(table(["CPU seconds, cold start", *(f"{count:,} runs" for count in counts)], cells))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


def measured(count: int, most_reported: int) -> dict[str, float | None]:
    """CPU seconds of each command on a store of `count` finished runs."""
    with tempfile.TemporaryDirectory() as folder:
        jobs = plant(Path(folder) / "runs", count)
        say(f"{count:,} runs planted")
        commands = {
            "rowsft --help": ["--help"],
            "rowsft run --help": ["run", "--help"],
            "run of a finished run": ["run", *TASK, *jobs[0]],
            "sweep that skips all": ["sweep", *TASK, *swept(jobs)],
            "runs --json": ["runs", "--json"],
            "runs": ["runs"],
            "report": ["report", "--out", "out"],
        }
        seconds: dict[str, float | None] = {}
        for name, command in commands.items():
            seconds[name] = None if name == "report" and count > most_reported else cpu_seconds(command, Path(folder))
            say(f"  {name}: {seconds[name]}")
        return seconds


def plant(root: Path, count: int) -> list[list[str]]:
    """Record `count` finished runs of a grid of rates, budgets and seeds; returns the overrides of each.

    The first goes through the store; the others are its copies with a configuration of their own, which is sooner.
    """
    seeds = min(count, 10)
    jobs = [["method=lora", f"budget.rows={1 + i // seeds}", f"seed={1 + i % seeds}"] for i in range(count)]
    composer, places, raw, first = ManyComposer(), Places(root, listed=True), None, None
    for job in jobs:
        spec = run_spec(composer.compose([*TASK, *job, f"store={root}"]), places)
        if raw is None:
            first = _first(root, spec)
            raw = json.loads((first / "record.json").read_text())
            continue
        folder = root / spec.run_id
        (folder / "attempt-1").mkdir(parents=True)
        raw |= {"id": spec.run_id, "config": spec.config}
        (folder / "record.json").write_text(json.dumps(raw, indent=1))
        for name in ("predictions.jsonl", "curve.csv"):
            os.link(first / "attempt-1" / name, folder / "attempt-1" / name)
    return jobs


def _first(root: Path, spec) -> Path:
    with Store(root).open(spec.config) as run:
        attempt = run.begin(environment=ENVIRONMENT, concurrent_jobs=1)
        attempt.update(**result("lora", 8, 1, 0.8))
        attempt.write_curve([{"step": step, "loss": 1 / step} for step in range(1, 101)])
        attempt.write_predictions(
            [{"id": f"test-{i}", "split": "test", "prediction": i % 2, "label": i % 3 % 2} for i in range(EXAMPLES)]
        )
        attempt.finish("done")
    return run.path


def swept(jobs: list[list[str]]) -> list[str]:
    """The command that spans `jobs`."""
    keys: dict[str, dict[str, None]] = {}
    for job in jobs:
        for text in job:
            key, _, value = text.partition("=")
            keys.setdefault(key, {})[value] = None
    return [f"{key}={','.join(values)}" for key, values in keys.items()]


def cpu_seconds(command: list[str], folder: Path) -> float:
    """User and system seconds of one command line."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.run(
        [sys.executable, "-m", "rowsft.cli", *command],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        raise SystemExit(f"rowsft {' '.join(command)[:200]}: status {process.returncode}\n{process.stderr}")
    if command[0] == "sweep" and process.stdout.count("done already") == 0:
        raise SystemExit(f"the sweep skipped nothing:\n{process.stdout[:500]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def say(text: str) -> None:
    """Progress, with the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
