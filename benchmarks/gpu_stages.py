"""What `make gpu` does, in order of worth: stages with their commands, time limits, needs, and how each one ended."""

import ast
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
QUICKSTART_ASSETS = ("minilm", "movie_reviews")

# What says most first: a stage may be ended before it is through.
_FEWER = ["floor", "lora", "rows", "rows_kept", "columns", "lora_rebuilt", "full", "dora"]
_ORDER = [*_FEWER, "neurons", "released", "shira"]

GPU_TESTS = [
    "tests/gpu",
    *(f"tests/unit/test_{name}.py" for name in ("measure_memory", "measure_clocks", "measure_nvml")),
]


@dataclass(frozen=True)
class Outcome:
    """state: done, or failed where something could not be measured. note: one line for the summary."""

    state: str
    note: str


@dataclass(frozen=True)
class Stage:
    """A part of the whole that stands for itself; its folder has its name.

    least_seconds: not begun with less time left. limit_seconds: ended then, and what it wrote stays. needs_gb: of
    10^9 bytes on the card. modules: importable ones. commands: from the stage's folder, what to run, one after another.
    outcome: from the same folder and the exit status, how it ended.
    """

    name: str
    title: str
    least_seconds: int
    limit_seconds: int
    needs_gb: int
    commands: Callable[[Path], list[list[str]]]
    outcome: Callable[[Path, int], Outcome]
    modules: tuple[str, ...] = ()
    assets: tuple[str, ...] = ()


def contenders() -> list[str]:
    """The names in contenders.py, read without importing torch."""
    for node in ast.parse((BENCHMARKS / "contenders.py").read_text()).body:
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        if any(getattr(target, "id", None) == "CONTENDERS" for target in targets):
            return [key.value for key in node.value.keys if isinstance(key, ast.Constant)]
    raise LookupError("benchmarks/contenders.py: no dictionary CONTENDERS")


def stages(dry_run: bool) -> list[Stage]:
    """All of them in order; dry_run: the same on shapes that a CPU has done in seconds."""
    return _tiny() if dry_run else _real()


def _real() -> list[Stage]:
    cuda = ["--device", "cuda", "--dtype", "bf16"]
    step = [*cuda, "--limit", "120"]
    return [
        _tests(least_seconds=30, limit_seconds=120, needs_gb=6),
        _step(
            "step-8b", "Llama-3-8B shape, 1 x 512, no checkpointing", 60, 300, 20,
            "llama3_8b", _ORDER, [*step, "--rounds", "4", "--steps", "5"],
        ),
        _plan("plan-8b", "Plan against allocator, 8B", 60, 240, 70, [*cuda[:2], "--large", "--jobs", _jobs()]),
        _step(
            "step-8b-4x2048", "Llama-3-8B shape, 4 x 2048, checkpointing", 60, 300, 40,
            "llama3_8b_4x2048", _FEWER, [*step, "--checkpointing", "--rounds", "2", "--steps", "2"],
        ),
        _selection("selection-8b", 60, 240, 40, ["--shape", "llama3_8b", *cuda], ["wanda", "taylor", "zo_taylor"]),
        _writing("writing-8b", 45, 120, 24, ["--shape", "llama3_8b", *cuda, "--channels", "rows", "columns"]),
        _step(
            "step-7b", "Llama-2-7B shape (the paper's model), 1 x 512, no checkpointing", 60, 240, 20,
            "llama2_7b", _FEWER, [*step, "--rounds", "4", "--steps", "5"],
        ),
        _plan("plan-1.5b", "Plan against allocator, 1.5B", 40, 240, 30, [*cuda[:2], "--small", "--jobs", _jobs()]),
        _step(
            "compile", "torch.compile (inductor), two layers of the Llama-3-8B shape, 1 x 512", 90, 300, 10,
            "llama3_8b_2_layers", ["floor", "lora", "rows"],
            [*cuda, "--limit", "200", "--compile", "inductor", "--rounds", "4", "--steps", "5"],
        ),
        _step(
            "not-compiled", "The same two layers without torch.compile", 30, 120, 10,
            "llama3_8b_2_layers", ["floor", "lora", "rows"], [*step, "--rounds", "4", "--steps", "5"],
        ),
        _quickstart(120, 900, "cuda"),
    ]  # fmt: skip


def _tiny() -> list[Stage]:
    step = ["--rounds", "2", "--steps", "2"]
    checkpointed = [*step, "--dtype", "bf16", "--checkpointing"]
    return [
        _tests(least_seconds=5, limit_seconds=120, needs_gb=0),
        _step("step-8b", "Tiny Llama", 5, 300, 0, "tiny_llama", ["floor", "lora", "rows"], step),
        _step("oom", "A model that no machine holds", 5, 120, 0, "too_large", ["floor", "rows"], step),
        _plan("plan-8b", "Plan against allocator, tiny shapes", 5, 300, 0, ["--small", "--methods", "row_sft", "lora"]),
        _step("step-8b-4x2048", "Tiny Llama, checkpointing", 5, 120, 0, "tiny_llama", ["lora"], checkpointed),
        _selection("selection-8b", 5, 120, 0, ["--shape", "tiny_llama"], ["wanda", "taylor"]),
        _writing("writing-8b", 5, 120, 0, ["--shape", "tiny_llama", "--rounds", "2"]),
        _step("compile", "torch.compile", 5, 120, 0, "tiny_llama", ["rows"], [*step, "--compile", "eager"]),
    ]


def _jobs() -> str:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return str(max(1, usable - 2))


def _tests(**times) -> Stage:
    def commands(folder: Path) -> list[list[str]]:
        options = ["-m", "gpu and not slow", "-p", "no:cacheprovider", f"--junitxml={folder / 'tests.xml'}", "-rfEs"]
        return [[sys.executable, "-m", "pytest", *options, *GPU_TESTS]]

    return Stage("tests", "Tests on the GPU", commands=commands, outcome=tests_outcome, **times)


def _step(name, title, least, limit, needs_gb, shape, methods, options) -> Stage:
    known = [method for method in methods if method in contenders()]

    def commands(folder: Path) -> list[list[str]]:
        arguments = ["--shape", shape, "--methods", *known, *options, "--in-turn", "--resume", "--out", str(folder)]
        return [[sys.executable, str(BENCHMARKS / "step.py"), *arguments]]

    return Stage(name, title, least, limit, needs_gb, commands, lambda folder, _: rows_outcome(folder / "step.json"))


def _plan(name, title, least, limit, needs_gb, options) -> Stage:
    def commands(folder: Path) -> list[list[str]]:
        out = ["--resume", "--out", str(folder / "plan_accuracy.json")]
        return [[sys.executable, str(BENCHMARKS / "plan_accuracy.py"), *options, *out]]

    def outcome(folder: Path, _: int) -> Outcome:
        return rows_outcome(folder / "plan_accuracy.json")

    return Stage(name, title, least, limit, needs_gb, commands, outcome, modules=("hydra", "omegaconf"))


def _table(name, title, least, limit, needs_gb, script, options, modules=()) -> Stage:
    """A benchmark that writes its rows into <script>.json of the folder that it is given."""

    def commands(folder: Path) -> list[list[str]]:
        return [[sys.executable, str(BENCHMARKS / f"{script}.py"), *options, "--out", str(folder)]]

    def outcome(folder: Path, _: int) -> Outcome:
        return rows_outcome(folder / f"{script}.json")

    return Stage(name, title, least, limit, needs_gb, commands, outcome, modules=modules)


def _selection(name, least, limit, needs_gb, options, metrics) -> Stage:
    options = [*options, "--metrics", *metrics]
    return _table(name, "What choosing the rows costs", least, limit, needs_gb, "selection", options)


def _writing(name, least, limit, needs_gb, options) -> Stage:
    title, needs = "What writing the rows costs", ("hydra", "omegaconf")
    return _table(name, title, least, limit, needs_gb, "writing", options, needs)


def _quickstart(least: int, limit: int, device: str) -> Stage:
    def commands(folder: Path) -> list[list[str]]:
        rowsft = [sys.executable, "-m", "rowsft.cli"]
        store = str(BENCHMARKS / "out" / folder.parent.name)
        return [
            [*rowsft, "sweep", "experiment=quickstart", f"trainer.device={device}", f"store={store}"],
            [*rowsft, "report", "--experiment", "quickstart", "--store", store, "--out", str(folder)],
        ]

    return Stage(
        "quickstart",
        "make quickstart on the GPU",
        least,
        limit,
        4,
        commands,
        lambda _, status: Outcome("done" if status == 0 else "failed", "its report.md is in the folder"),
        modules=("hydra", "omegaconf", "datasets", "evaluate"),
        assets=QUICKSTART_ASSETS,
    )


def rows_outcome(path: Path) -> Outcome:
    """By a benchmark's rows: out of memory is a result, any other error is not."""
    if not path.exists():
        return Outcome("failed", "nothing was measured; see log.txt")
    rows = json.loads(path.read_text())["rows"]
    failed = [row for row in rows if "error" in row and not row.get("oom")]
    oom = sum(1 for row in rows if row.get("oom"))
    note = f"{len(rows)} rows" + (f", {oom} out of memory" if oom else "")
    if failed or not rows:
        return Outcome("failed", f"{note}, {len(failed)} failed")
    return Outcome("done", note)


def tests_outcome(folder: Path, status: int) -> Outcome:
    """By pytest's own XML."""
    path = folder / "tests.xml"
    if not path.exists():
        return Outcome("failed", f"pytest ended with status {status} before it wrote a result; see log.txt")
    suite = ElementTree.parse(path).getroot().find("testsuite")
    total, skipped, bad = (int(suite.get(key, 0)) for key in ("tests", "skipped", "failures"))
    bad += int(suite.get("errors", 0))
    note = f"{total - skipped - bad} passed, {bad} failed, {skipped} skipped in {float(suite.get('time', 0)):.0f} s"
    # 5: nothing was collected.
    return Outcome("done" if not bad and status in (0, 5) else "failed", note)
