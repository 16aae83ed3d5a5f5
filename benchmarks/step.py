"""One training step of every method side by side: FLOPs, exact bytes, and time against the floor and against LoRA.

    python benchmarks/step.py                                          the Llama and the BERT shape, on the CPU
    python benchmarks/step.py --tiny                                   seconds: does everything run?
    python benchmarks/step.py --shape llama --methods floor rows lora  some of them
    python benchmarks/step.py --shape llama3_8b --device cuda --dtype bf16 --in-turn --rounds 3 --steps 5

Every method is a process of its own with the same seeded model, the same batch and as many trainable parameters as LoRA
of the shape's rank (floor, full and methods of a size of their own aside); no dropout anywhere. Bytes and FLOPs are
measured first. Then rounds: each process in turn times a few steps while the others wait, so that what disturbs the
machine disturbs all alike, and no two compute at once. Writes step.json (after every method), step.md and step.png into
--out.
"""

import argparse
import json
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import summary
from contenders import CONTENDERS
from shapes import DTYPES, SEED, SHAPES

from rowsft.measure import collect

HERE = Path(__file__).resolve().parent
DEFAULT_METHODS = [name for name, contender in CONTENDERS.items() if contender.by_default]


class WorkerError(Exception):
    """A method's process could not do what it was told, in one line. oom: for want of memory."""

    def __init__(self, message: str, oom: bool = False):
        super().__init__(message)
        self.oom = oom


class Worker:
    """A method's process; it computes only while one of these calls waits for it.

    limit: seconds that one call may take before the process is ended and a WorkerError says so; None for no limit.
    """

    def __init__(self, limit: float | None = None):
        self.limit = limit
        self.imported = False
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(HERE / "worker.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ready(self) -> None:
        """Wait until the process has imported everything."""
        if not self.imported:
            self._answer()
            self.imported = True

    def begin(self, settings: dict) -> dict:
        """Build the method on its model; what was measured, nothing if settings["measure"] is False."""
        self.ready()
        return self._ask(json.dumps(settings))

    def seconds(self, steps: int) -> list[float]:
        """Seconds of each of `steps` training steps."""
        return self._ask(str(steps))

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()

    def _ask(self, line: str):
        try:
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise WorkerError(self._ended()) from error
        return self._answer()

    def _answer(self):
        late = threading.Event()
        timer = threading.Timer(self.limit or 0, lambda: (late.set(), self.process.kill()))
        if self.limit:
            timer.start()
        # Whatever a library prints while it is imported goes before the first answer.
        line = next((line for line in self.process.stdout if line.startswith('{"')), None)
        timer.cancel()
        said = json.loads(line) if line else {"error": self._ended()}
        if late.is_set():
            said = {"error": f"not done within {self.limit:g} seconds"}
        if "error" in said:
            self.process.wait()
            raise WorkerError(said["error"], said.get("oom", False))
        return said["ok"]

    def _ended(self) -> str:
        return f"process ended with status {self.process.wait()}"


class Bench:
    """The measurements of one shape, method by method, as they come in."""

    def __init__(self, options: argparse.Namespace, shape: str, save: Callable[[], None] = lambda: None):
        self.options = options
        self.shape = shape
        self.save = save
        self.measured: dict[str, dict] = {}
        self.rounds: dict[str, list[list[float]]] = {name: [] for name in options.methods}
        self.errors: dict[str, WorkerError] = {}
        self.workers: dict[str, Worker] = {}

    def rows(self) -> list[dict]:
        """One row a method that was reached."""
        reached = [name for name in self.options.methods if name in self.measured or name in self.errors]
        found = summary.rows(
            self.shape,
            reached,
            self.measured,
            self.rounds,
            {name: str(error) for name, error in self.errors.items()},
            self.options.in_turn,
        )
        return [{**row, "oom": True} if self._oom(row["method"]) else row for row in found]

    def _oom(self, name: str) -> bool:
        return name in self.errors and self.errors[name].oom

    def resume(self, rows: list[dict], rounds: dict[str, list[list[float]]]) -> None:
        """Take over the finished rows of an earlier call: those that have times, and those that ran out of memory."""
        for row in rows:
            name = row["method"]
            if name not in self.rounds or not (row.get("oom") or ("error" not in row and rounds.get(name))):
                continue
            if row.get("oom"):
                self.errors[name] = WorkerError(row["error"], oom=True)
            if "flops" in row:
                self.measured[name] = {key: row[key] for key in summary.MEASURED if key in row}
            self.rounds[name] = rounds.get(name, [])

    def run(self) -> None:
        """Measure what is not measured yet."""
        if self.options.in_turn:
            return self._in_turn()
        try:
            if not self.options.alone:
                # All of them before the first round: starting one takes longer than a turn.
                for name in self.options.methods:
                    self.workers[name] = Worker(self.options.limit)
                    self._guarded(name, self._start)
            for number in range(self.options.rounds):
                for name in self.options.methods:
                    if name not in self.errors:
                        self._guarded(name, self._turn)
                print(f"{self.shape}: round {number + 1} of {self.options.rounds}", file=sys.stderr)
                self.save()
        finally:
            for worker in self.workers.values():
                worker.close()
        return None

    def _in_turn(self) -> None:
        """A method after the other, all its rounds at once. While one builds, the next one's process imports; it has
        done so before the clock starts, so that nothing else runs beside a timed step."""
        names = [name for name in self.options.methods if name not in {*self.errors, *self.measured}]
        waiting = Worker(self.options.limit) if names else None
        try:
            for name in names:
                self.workers[name] = waiting
                waiting = Worker(self.options.limit) if name != names[-1] else None
                self._guarded(name, lambda name, following=waiting: self._all_rounds(name, following))
                if name in self.workers:
                    self.workers.pop(name).close()
                self.save()
        finally:
            for worker in [*self.workers.values(), waiting]:
                if worker:
                    worker.close()

    def _all_rounds(self, name: str, following: Worker | None) -> None:
        worker = self._start(name)
        if following:
            following.ready()
        for _ in range(self.options.rounds):
            self.rounds[name].append(worker.seconds(self.options.steps))

    def _turn(self, name: str) -> None:
        if self.options.alone:
            self.workers[name] = Worker(self.options.limit)
            self._start(name)
        worker = self.workers[name]
        self.rounds[name].append(worker.seconds(self.options.steps))
        if self.options.alone:
            self.workers.pop(name).close()

    def _start(self, name: str) -> Worker:
        chosen = {key: getattr(self.options, key) for key in ("device", "dtype", "checkpointing", "compile")}
        worker, measure = self.workers[name], name not in self.measured
        measured = worker.begin({**chosen, "shape": self.shape, "method": name, "measure": measure})
        if measure:
            self.measured[name] = measured
            print(f"{self.shape}: {name} measured", file=sys.stderr)
        return worker

    def _guarded(self, name: str, work: Callable[[str], object]) -> None:
        """A method that fails gets a row that says so; the others go on."""
        try:
            work(name)
        except WorkerError as error:
            self.errors[name] = error
            self.workers.pop(name, None)
            print(f"{self.shape}: {name} failed: {error}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Exit status 1 when a method could not be measured: its row says why."""
    options = _parser().parse_args(arguments)
    environment = collect({"seed": SEED})
    command = shlex.join(["python", "benchmarks/step.py", *(sys.argv[1:] if arguments is None else arguments)])
    result = {
        "rows": [],
        "about": {name: CONTENDERS[name].about for name in options.methods},
        "settings": {key: str(value) for key, value in vars(options).items() if key not in ("out", "resume")},
        "environment": environment,
        "command": command,
        "commit": environment["git_commit"],
        "rounds": {},
    }
    benches = {}

    def save() -> None:
        result["rows"] = [row for bench in benches.values() for row in bench.rows()]
        result["rounds"] = {shape: bench.rounds for shape, bench in benches.items()}
        summary.save(result, options.out)

    earlier = _earlier(options, result) if options.resume else {"rows": [], "rounds": {}}
    for shape in options.shape:
        benches[shape] = Bench(options, shape, save)
        rows = [row for row in earlier["rows"] if row["shape"] == shape]
        benches[shape].resume(rows, earlier["rounds"].get(shape, {}))
    for bench in benches.values():
        bench.run()
    save()
    summary.write(result, options.out)
    print((options.out / "step.md").read_text())
    return 1 if any("error" in row for row in result["rows"]) else 0


def _earlier(options: argparse.Namespace, result: dict) -> dict:
    """The result that is in --out, if it is of the same commit and settings."""
    path = options.out / "step.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    same = all(found.get(key) == result[key] for key in ("commit", "settings"))
    return found if same else {"rows": [], "rounds": {}}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["llama", "bert"], help="models to measure on")
    parser.add_argument(
        "--tiny", dest="shape", action="store_const", const=["tiny_llama", "tiny_bert"], help="shapes that take seconds"
    )
    parser.add_argument("--methods", nargs="+", choices=CONTENDERS, default=DEFAULT_METHODS, metavar="METHOD")
    parser.add_argument("--rounds", type=_positive, default=6, help="how often every method gets its turn")
    parser.add_argument("--steps", type=_positive, default=2, help="timed steps a turn, after one that is not")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda: events and the allocator's statistics")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="of the base model; bf16 halves it")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing: less memory, more time")
    parser.add_argument(
        "--alone", action="store_true", help="end each process after its turn: for models of which only one fits"
    )
    parser.add_argument(
        "--in-turn",
        action="store_true",
        help="one process a method, all its rounds at once, then the next: where starting one takes long",
    )
    parser.add_argument("--compile", metavar="BACKEND", help="torch.compile the model: inductor, eager (off otherwise)")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="longest that a method may stay silent")
    parser.add_argument("--resume", action="store_true", help="keep what --out has of the same commit and settings")
    parser.add_argument("--out", type=Path, default=HERE / "out", help="folder to write (default: benchmarks/out)")
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a count; give a whole number of at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
