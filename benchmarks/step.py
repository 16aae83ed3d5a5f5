"""One training step of every method side by side: FLOPs, exact bytes, and time against the floor and against LoRA.

    python benchmarks/step.py                                          the Llama and the BERT shape, on the CPU
    python benchmarks/step.py --tiny                                   seconds: does everything run?
    python benchmarks/step.py --shape llama --methods floor rows lora  some of them
    python benchmarks/step.py --shape llama3_8b --device cuda --dtype bf16 --checkpointing --alone

Every method is a process of its own with the same seeded model, the same batch and (floor and full aside) as many
trainable parameters as LoRA of the shape's rank; no dropout anywhere. Bytes and FLOPs are measured first. Then rounds:
each process in turn times a few steps while the others wait, so that what disturbs the machine disturbs all alike, and
no two compute at once. Writes step.json, step.md and step.png into --out.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import summary
from contenders import CONTENDERS
from shapes import DTYPES, SEED, SHAPES

from rowsft.measure import collect

HERE = Path(__file__).resolve().parent
DEFAULT_METHODS = [name for name in CONTENDERS if name != "half"]


class WorkerError(Exception):
    """A method's process could not do what it was told, in one line."""


class Worker:
    """A method's process; it computes only while one of these calls waits for it."""

    def __init__(self, settings: dict):
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(HERE / "worker.py"), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.measured = self._answer()

    def seconds(self, steps: int) -> list[float]:
        """Seconds of each of `steps` training steps."""
        try:
            self.process.stdin.write(f"{steps}\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise WorkerError(f"process ended with status {self.process.wait()}") from error
        return self._answer()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()

    def _answer(self):
        line = self.process.stdout.readline()
        said = json.loads(line) if line else {"error": f"process ended with status {self.process.wait()}"}
        if "error" in said:
            self.process.wait()
            raise WorkerError(said["error"])
        return said["ok"]


class Bench:
    """The measurements of one shape, method by method, as they come in."""

    def __init__(self, options: argparse.Namespace, shape: str):
        self.options = options
        self.shape = shape
        self.measured: dict[str, dict] = {}
        self.rounds: dict[str, list[list[float]]] = {name: [] for name in options.methods}
        self.errors: dict[str, str] = {}
        self.workers: dict[str, Worker] = {}

    def run(self) -> list[dict]:
        """One row a method."""
        try:
            if not self.options.alone:
                # All of them before the first round: starting one takes longer than a turn.
                for name in self.options.methods:
                    self._guarded(name, self._start)
            for number in range(self.options.rounds):
                for name in self.options.methods:
                    if name not in self.errors:
                        self._guarded(name, self._turn)
                print(f"{self.shape}: round {number + 1} of {self.options.rounds}", file=sys.stderr)
        finally:
            for worker in self.workers.values():
                worker.close()
        return summary.rows(self.shape, self.options.methods, self.measured, self.rounds, self.errors)

    def _turn(self, name: str) -> None:
        worker = self.workers.get(name) or self._start(name)
        self.rounds[name].append(worker.seconds(self.options.steps))
        if self.options.alone:
            self.workers.pop(name).close()

    def _start(self, name: str) -> Worker:
        chosen = {key: getattr(self.options, key) for key in ("device", "dtype", "checkpointing")}
        worker = Worker({**chosen, "shape": self.shape, "method": name, "measure": name not in self.measured})
        self.workers[name] = worker
        if worker.measured:
            self.measured[name] = worker.measured
            print(f"{self.shape}: {name} measured", file=sys.stderr)
        return worker

    def _guarded(self, name: str, work: Callable[[str], object]) -> None:
        """A method that fails gets a row that says so; the others go on."""
        try:
            work(name)
        except WorkerError as error:
            self.errors[name] = str(error)
            self.workers.pop(name, None)
            print(f"{self.shape}: {name} failed: {error}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Exit status 1 when a method could not be measured: its row says why."""
    options = _parser().parse_args(arguments)
    rows = [row for shape in options.shape for row in Bench(options, shape).run()]
    environment = collect({"seed": SEED})
    command = shlex.join(["python", "benchmarks/step.py", *(sys.argv[1:] if arguments is None else arguments)])
    result = {
        "rows": rows,
        "about": {name: CONTENDERS[name].about for name in options.methods},
        "settings": {key: str(value) for key, value in vars(options).items() if key != "out"},
        "environment": environment,
        "command": command,
        "commit": environment["git_commit"],
    }
    summary.write(result, options.out)
    print((options.out / "step.md").read_text())
    return 1 if any("error" in row for row in rows) else 0


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
    parser.add_argument("--out", type=Path, default=HERE / "out", help="folder to write (default: benchmarks/out)")
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a count; give a whole number of at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
