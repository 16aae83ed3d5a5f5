"""Everything that a CUDA card can say about the suite, in order of worth and within a time limit: `make gpu`.

    python benchmarks/gpu.py                      all stages
    python benchmarks/gpu.py --minutes 9          what fits in nine minutes; a second call goes on from there
    python benchmarks/gpu.py --stages tests step-8b
    python benchmarks/gpu.py --dry-run            the same on tiny shapes and a CPU: does everything run?

Every stage is a process group of its own (gpu_stages.py has their commands, limits and needs). Results are written as
they come, into benchmarks/results/DATE-CARD/: a folder a stage, gpu.json, and README.md with all tables. A call finds
the folder of the same commit and card again and skips what is done there; another commit gets another folder. Exit
status: 0, 1 when a stage failed, 2 without a CUDA device. Needs no network; packages that this Python lacks are taken
from .gpu-wheels/, which `make gpu-wheels` fills.
"""

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import gpu_packages
import gpu_tables
from gpu_stages import BENCHMARKS, ROOT, Outcome, Stage, stages

# What the last summary takes, and how long a process may take to end when it is told to.
CLOSING_SECONDS = 3
GRACE_SECONDS = 2
LOG_BYTES = 32_000


class Run:
    """The stages of one call, and the folder that they write into."""

    def __init__(self, options: argparse.Namespace, facts: dict, environment: dict[str, str], began: float):
        self.options = options
        self.facts = facts
        self.environment = environment
        self.deadline = began + 60 * options.minutes if options.minutes else None
        self.folder = folder_of(options.out, facts)
        self.record = self._read() or {**facts, "started_at": _now(), "calls": [], "stages": {}}
        self.record["calls"].append(_command(options))

    def run(self) -> int:
        """Every stage that is wanted, not done yet, possible and affordable."""
        wanted = [stage for stage in stages(self.options.dry_run) if self._wanted(stage)]
        print(f"{self.facts['card']['name']}: results go to {self.folder}", flush=True)
        for stage in wanted:
            if self.record["stages"].get(stage.name, {}).get("state") == "done":
                print(f"{stage.name}: done already", flush=True)
                continue
            # Whoever ends this call from outside leaves a page of all that was written by then.
            self._enter(stage, {"state": "begun", "note": "the call was ended before the stage was"})
            self._enter(stage, self._tried(stage))
        self._write()
        print(f"\n{(self.folder / 'README.md').read_text()}\nwritten to {self.folder / 'README.md'}")
        return int(any(self.record["stages"][stage.name]["state"] == "failed" for stage in wanted))

    def _enter(self, stage: Stage, found: dict) -> None:
        self.record["stages"][stage.name] = {"title": stage.title, **found}
        self._write()

    def _tried(self, stage: Stage) -> dict:
        missing = unmet(stage, self.facts)
        left = self.deadline and self.deadline - time.monotonic() - CLOSING_SECONDS
        if missing:
            found = {"state": "skipped", "note": missing}
        elif left is not None and left < stage.least_seconds:
            note = f"{max(0, left):.0f} s were left, and its first results take {stage.least_seconds} s"
            found = {"state": "not reached", "note": note}
        else:
            limit = stage.limit_seconds if left is None else min(stage.limit_seconds, left)
            print(f"{stage.name}: {stage.title} (limit {limit:.0f} s)", flush=True)
            found = self._run(stage, limit)
        print(f"{stage.name}: {found['state']}: {found['note']}", flush=True)
        return found

    def _run(self, stage: Stage, limit: float) -> dict:
        folder = self.folder / stage.name
        folder.mkdir(parents=True, exist_ok=True)
        # Relative to where they run, so that the commands on record name no machine's folder.
        commands = stage.commands(folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder)
        begin, status, late = time.monotonic(), 0, False
        with (folder / "log.txt").open("ab") as log:
            for command in commands:
                status, late = _within(command, begin + limit, log, self.environment)
                if status or late:
                    break
        _shorten(folder / "log.txt")
        outcome = stage.outcome(folder, status)
        if late:
            outcome = Outcome("ended", f"ended after its {limit:.0f} s; {outcome.note}")
        return {
            "state": outcome.state,
            "note": outcome.note,
            "seconds": round(time.monotonic() - begin, 1),
            "commands": [shlex.join(_shown(command)) for command in commands],
            "at": _now(),
        }

    def _wanted(self, stage: Stage) -> bool:
        return not self.options.stages or stage.name in self.options.stages

    def _read(self) -> dict | None:
        path = self.folder / "gpu.json"
        return json.loads(path.read_text()) if path.exists() else None

    def _write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        known = [stage.name for stage in stages(self.options.dry_run)]
        text = gpu_tables.page(self.record, self.folder, [name for name in known if name in self.record["stages"]])
        for name, content in (("gpu.json", json.dumps(self.record, indent=1) + "\n"), ("README.md", text)):
            part = self.folder / f".{name}.part"
            part.write_text(content)
            part.replace(self.folder / name)


def unmet(stage: Stage, facts: dict) -> str | None:
    """Why the stage cannot run here, in one line; None if it can."""
    has_gb = facts["card"]["memory_bytes"] / 1e9
    if has_gb < stage.needs_gb:
        return f"needs a card of {stage.needs_gb} GB; this one has {has_gb:.0f} GB"
    missing = [name for name in stage.modules if name in facts["missing_modules"]]
    if missing:
        return f"needs {', '.join(missing)}, not installed and not in .gpu-wheels/; run make gpu-wheels where pip works"
    assets = Path(os.environ.get("ROWSFT_ASSETS") or ROOT / ".assets")
    absent = [name for name in stage.assets if not (assets / name).exists()]
    if absent:
        return f"needs {', '.join(absent)} in {assets.name}/; run rowsft fetch where pip works and copy the folder"
    return None


def folder_of(out: Path, facts: dict) -> Path:
    """The folder of the same code and card if there is one, else a new one: DATE-CARD, or DATE-CARD-2 and so on."""
    same = ("commit", "source", "card", "dry_run")
    for path in sorted(out.glob("*/gpu.json"), reverse=True):
        found = json.loads(path.read_text())
        if all(found.get(key) == facts[key] for key in same):
            return path.parent
    name = f"{datetime.now(UTC):%Y-%m-%d}-{facts['card']['slug']}"
    number = 1
    while (folder := out / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return folder


def _within(command: list[str], until: float, log, environment: dict[str, str]) -> tuple[int, bool]:
    """Exit status, and whether the time limit ended the command and every process that it had started."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT, env=environment, start_new_session=True
    )
    try:
        return process.wait(max(0.1, until - time.monotonic())), False
    except subprocess.TimeoutExpired:
        return -signal.SIGKILL, True
    finally:
        _end_group(process)


def _end_group(process: subprocess.Popen) -> None:
    """Nothing of the stage may hold the card's memory when the next one begins."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)


def _shorten(log: Path) -> None:
    text = log.read_bytes()
    if len(text) > LOG_BYTES:
        log.write_bytes(b"...\n" + text[-LOG_BYTES:])


def _shown(command: list[str]) -> list[str]:
    """Without this machine's folders."""
    return ["python" if part == sys.executable else part.replace(f"{ROOT}{os.sep}", "") for part in command]


def _command(options: argparse.Namespace) -> str:
    minutes = f" MINUTES={options.minutes:g}" if options.minutes else ""
    if options.dry_run or options.stages:
        return shlex.join(["python", "benchmarks/gpu.py", *_shown(sys.argv[1:])])
    return f"make gpu{minutes}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _facts(options: argparse.Namespace, environment: dict[str, str]) -> dict:
    """What gpu_probe.py finds, in a process of its own: this one takes no memory of the card."""
    command = [sys.executable, "-W", "ignore", str(BENCHMARKS / "gpu_probe.py")]
    probe = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    if probe.returncode:
        raise SystemExit(f"{sys.executable}: torch or rowsft cannot be imported (see above); see make gpu-wheels")
    facts = json.loads(probe.stdout)
    if options.commit:
        facts["commit"] = options.commit
    if options.dry_run:
        facts["card"] = {"name": "CPU (dry run)", "slug": "dry-run", "memory_bytes": 0}
    return {**facts, "dry_run": options.dry_run}


def main(arguments: list[str] | None = None) -> int:
    """See the module."""
    began = time.monotonic()
    options = _parser().parse_args(arguments)
    options.out = (options.out or BENCHMARKS / ("out/gpu" if options.dry_run else "results")).absolute()
    environment = gpu_packages.environment()
    facts = _facts(options, environment)
    if facts["card"] is None:
        print(
            f"gpu: error: torch {facts['packages']['torch']} sees no CUDA device; run it where there is one, or try "
            "it out with python benchmarks/gpu.py --dry-run",
            file=sys.stderr,
        )
        return 2
    run = Run(options, facts, environment, began)
    # Told to end, the stage's processes end first.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return run.run()
    except KeyboardInterrupt:
        print(f"gpu: interrupted; {run.folder} has what was done, and the next call goes on", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(dict.fromkeys(stage.name for dry in (False, True) for stage in stages(dry)))
    parser.add_argument("--minutes", type=_minutes, help="keep within so many (default: the stages' own limits)")
    parser.add_argument("--stages", nargs="+", choices=names, metavar="STAGE", help=f"some of: {', '.join(names)}")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU, into benchmarks/out/gpu")
    parser.add_argument("--commit", help="of this code, where there is no git repository to ask")
    parser.add_argument("--out", type=Path, help="folder of results folders (default: benchmarks/results)")
    return parser


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time; give minutes above 0, such as 9")
    return minutes


if __name__ == "__main__":
    sys.exit(main())
