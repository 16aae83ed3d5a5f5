"""Kills sweeps and writers of a store at random moments, restarts them, and holds the table against an undisturbed one.

    python tests/kill.py --minutes 10             make kill-test MINUTES=10
    python tests/kill.py --minutes 1 --seed 7     the same moments again, as far as a machine repeats itself

Five things are killed: the whole process group of a sweep, its parent alone, a job of it alone, a job once it has a
checkpoint, and processes that only write records; where a file system may be mounted, a small disk is filled under the
writers, too. After each kill every record must be whole and nothing that was done may be lost. Ends with the number of
kills and "same table", or with what differs and status 1.
"""

import argparse
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
from tiny_workshop import Workshop, build_workshop

from rowsft.record import plain
from rowsft.store import Store
from rowsft.store.files import sha256

WRITER = """
import sys
from rowsft.errors import UserError
from rowsft.store import Store
root, first, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
try:
    for seed in range(first, last):
        with Store(root).open({"seed": seed, "method": {"name": "mine"}, "experiment_name": "written"}) as run:
            if run.record.result is None:
                attempt = run.begin()
                attempt.update(seconds={"load": 1.0}, resolved={"ids": list(range(seed * 50))})
                attempt.write_predictions([{"id": i, "split": "test", "prediction": i * seed % 2} for i in range(200)])
                attempt.write_curve([{"step": step, "loss": seed / step} for step in range(1, 50)])
                attempt.write_folder("adapter", lambda folder: (folder / "weights").write_bytes(bytes(seed * 1000)))
                attempt.finish("done", metrics={"test": {"accuracy": seed / 100}})
except UserError as error:
    print(f"rowsft: error: {error}", file=sys.stderr)
    sys.exit(2)
"""
# Runs of the writers: few enough that a minute finishes them several times.
WRITTEN = 12


class Damage(Exception):
    """What must never be: a record that is not whole, a result that is gone, a table that differs."""


class Watch(logging.Handler):
    """Every warning of the store while it is read is a record that is not whole."""

    def emit(self, entry: logging.LogRecord) -> None:
        raise Damage(entry.getMessage())


def table(root: Path) -> list[tuple]:
    """What a report shows of a store and no clock can change: a line a run."""
    lines = []
    for record in Store(root).runs():
        result = record.result
        if result is None:
            lines.append((record.id, False))
            continue
        files = {name: entry.sha256 for name, entry in sorted(result.files.items()) if name != "memory"}
        names = ("metrics", "parameters", "resolved", "train_loss_final", "steps")
        shown = {name: plain(getattr(result, name)) for name in names}
        lines.append((record.id, True, json.dumps(shown, sort_keys=True), json.dumps(files, sort_keys=True)))
    return lines


def check(root: Path, done: set[str]) -> None:
    """Raise Damage where a record is not whole, a finished run is gone or a file is not what its record says."""
    found = set()
    for record in Store(root).runs():
        if record.result is None:
            continue
        found.add(record.id)
        for name, entry in record.result.files.items():
            if sha256(record.folder / entry.path) != entry.sha256:
                raise Damage(f"run {record.id}: {name} is not the file that was recorded")
    if done - found:
        raise Damage(f"finished runs are gone: {', '.join(sorted(done - found))}")
    done |= found


class KillTest:
    """One such test in a folder that holds models and data. counts: kills by kind."""

    def __init__(self, folder: Path, jobs: list[str], seed: int):
        self.folder, self.jobs, self.draw = folder, jobs, random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.groups: list[int] = []

    def sweep(self, store: str, at_once: int = 1) -> subprocess.Popen:
        """Start the sweep in a process group of its own."""
        command = [sys.executable, "-m", "rowsft.cli", "sweep", *self.jobs, f"store={self.folder / store}"]
        process = subprocess.Popen(
            [*command, f"hydra.launcher.jobs={at_once}", "hydra.launcher.threads=1"],
            cwd=self.folder,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.groups.append(process.pid)
        return process

    def undisturbed(self, store: str) -> list[tuple]:
        """The table after a sweep that nobody kills."""
        if status := self.sweep(store, at_once=2).wait():
            raise Damage(f"the sweep in {store} ended with status {status}")
        return table(self.folder / store)

    def kill_sweeps(self, going: Callable[[], bool]) -> None:
        """Start a sweep, let it live for a moment, kill a part of it or all."""
        done: set[str] = set()
        while going():
            process = self.sweep("killed", at_once=self.draw.choice([1, 2]))
            kind = self.draw.choice(["group", "parent", "child", "trainee", "trainee"])
            if kind == "trainee":
                self.await_a_checkpoint(process)
            else:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(self.draw.uniform(0.2, 12))
            if kind in ("child", "trainee"):
                self._kill_a_child(process)
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    process.kill() if kind == "parent" else os.killpg(process.pid, signal.SIGKILL)
                self.counts["parent" if kind == "parent" else "group"] += 1
            process.wait()
            check(self.folder / "killed", done)

    def await_a_checkpoint(self, process: subprocess.Popen) -> None:
        """Wait until a job writes one, and a little longer: what is killed then goes on from there."""
        end, before = time.monotonic() + 300, self._checkpoints()
        while process.poll() is None and time.monotonic() < end:
            if self._checkpoints() - before:
                time.sleep(self.draw.uniform(0, 0.5))
                return
            time.sleep(0.05)

    def _checkpoints(self) -> set[Path]:
        return set((self.folder / "killed").glob("*/attempt-*/checkpoint-*"))

    def _kill_a_child(self, process: subprocess.Popen) -> None:
        with suppress(psutil.Error):
            children = psutil.Process(process.pid).children()
            if children:
                self.draw.choice(children).send_signal(self.draw.choice([signal.SIGKILL, signal.SIGTERM]))
                self.counts["child"] += 1
                with suppress(subprocess.TimeoutExpired):
                    process.wait(self.draw.uniform(0, 3))

    def kill_writers(self, root: Path, going: Callable[[], bool]) -> None:
        """Two writers on the same runs, killed at any moment of their work."""
        done: set[str] = set()
        while going():
            writers = [self.writer(root) for _ in range(2)]
            time.sleep(self.draw.uniform(0.05, 0.8))
            for writer in writers:
                self.counts["writer"] += writer.poll() is None
                writer.kill()
                writer.communicate()
            check(root, done)

    def writer(self, root: Path) -> subprocess.Popen:
        """Start a process that records runs from a random one on."""
        first = self.draw.randrange(1, WRITTEN)
        return self._write(root, first, WRITTEN)

    def written(self, root: Path) -> list[tuple]:
        """The table once one writer has come through."""
        process = self._write(root, 1, WRITTEN)
        said = process.communicate()[1]
        if process.returncode:
            raise Damage(f"a writer ended with status {process.returncode}: {said.decode()}")
        if left := [path for path in root.rglob(".*.tmp") if path.parent.name != "scores"]:
            raise Damage(f"temporary files are left: {', '.join(map(str, left))}")
        return table(root)

    def _write(self, root: Path, first: int, last: int) -> subprocess.Popen:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        command = [sys.executable, "-c", WRITER, str(root), str(first), str(last)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def fill_disks(self, going: Callable[[], bool]) -> str | None:
        """Writers on a disk that fills up at any moment; returns why not, where no file system may be mounted."""
        disk = self.folder / "disk"
        disk.mkdir()
        mount = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, text=True, check=False
        )
        if mount.returncode:
            return mount.stderr.strip()
        try:
            done: set[str] = set()
            while going():
                fill = disk / "fill"
                with suppress(OSError):
                    fill.write_bytes(bytes(self.draw.randrange(600_000, 1_100_000)))
                process = self.writer(disk / "runs")
                said = process.communicate()[1].decode()
                if process.returncode not in (0, 2) or (process.returncode == 2 and said.count("\n") != 1):
                    raise Damage(f"on a full disk a writer ended with status {process.returncode}: {said}")
                self.counts["full disk"] += process.returncode == 2
                check(disk / "runs", done)
                fill.unlink()
            self._same("on a disk that was full", self.written(disk / "runs"), self.written(self.folder / "quiet"))
        finally:
            subprocess.run(["umount", disk], check=True)
        return None

    def _same(self, where: str, found: list[tuple], expected: list[tuple]) -> None:
        if found != expected:
            raise Damage(f"{where} the table differs: {sorted({*found} ^ {*expected})}")

    def for_minutes(self, minutes: float) -> Callable[[], bool]:
        """Return what says whether that much time is left from now on."""
        end = time.monotonic() + 60 * minutes
        return lambda: time.monotonic() < end

    def for_kills(self, kills: float) -> Callable[[], bool]:
        """Return what says whether fewer kills came from now on."""
        before = self.counts.total()
        return lambda: self.counts.total() - before < kills

    def run(self, share: Callable[[float], Callable[[], bool]]) -> str:
        """All of it: half for sweeps, a third for writers, the rest for full disks. Returns the last line.

        share: `for_minutes` or `for_kills` of this fraction. Raises Damage.
        """
        watch = Watch(logging.WARNING)
        logging.getLogger("rowsft.store").addHandler(watch)
        try:
            expected = self.undisturbed("quiet-sweep")
            self.kill_sweeps(share(1 / 2))
            self._same("after the kills", self.undisturbed("killed"), expected)
            self.kill_writers(self.folder / "writers", share(1 / 3))
            self._same("of killed writers", self.written(self.folder / "writers"), self.written(self.folder / "quiet"))
            skipped = self.fill_disks(share(1 / 6))
        finally:
            logging.getLogger("rowsft.store").removeHandler(watch)
            for group in self.groups:
                with suppress(ProcessLookupError):
                    os.killpg(group, signal.SIGKILL)
        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(self.counts.items()))
        without = f"; no full disk: {skipped}" if skipped else ""
        attempts = [attempt for record in Store(self.folder / "killed").runs() for attempt in record.attempts]
        resumed = sum(attempt.resumed.times is not None for attempt in attempts)
        return f"{self.counts.total()} kills ({kinds}), {resumed} times gone on from a checkpoint{without}; same table"


def main() -> None:
    """The command line; prints the last line of `KillTest.run`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="how long things are killed (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workshop = build_workshop(Path(folder))
        try:
            test = KillTest(Path(folder), jobs(workshop, 6), given.seed)
            print(test.run(lambda share: test.for_minutes(share * given.minutes)))
        except Damage as damage:
            sys.exit(f"seed {given.seed}: {damage}")


def jobs(workshop: Workshop, seeds: int) -> list[str]:
    """The cheapest sweep there is: a method that trains nothing, and one that goes on from checkpoints."""
    left_out = ("store=", "trainer.memory_probe_steps", "trainer.steps", "budget.")
    rest = [text for text in workshop.overrides("bert") if not text.startswith(left_out)]
    listed = ",".join(str(seed) for seed in range(1, seeds + 1))
    training = ["trainer.steps=300", "trainer.checkpoint_steps=10", "trainer.memory_probe_steps=0"]
    return [*rest, *training, "method=none,row_sft", f"seed={listed}"]


if __name__ == "__main__":
    main()
