"""Runs and benchmark files to hold against each other, and the ways tests look at what came out."""

import io
import json

import pytest
from report_factory import ENVIRONMENT, classification, finish
from rich.console import Console

from rowsft.cli.main import main
from rowsft.report.compare import compare, terminal
from rowsft.store import Store

MIB = 2**20


def lora_and_rows(root):
    """A store with a LoRA run and a row-SFT run on the same sentiment examples: (store, id, id)."""
    store = Store(root)
    lora = finish(store, classification("lora", 1), method="lora", task="sentiment")
    rows = finish(store, classification("row_sft", 1), method="row_sft", task="sentiment")
    return store, lora, rows


def compared(pair, *limits):
    """The two runs of `lora_and_rows`, held against each other."""
    store, lora, rows = pair
    return compare(lora, rows, store.root, list(limits))


def number(comparison, name):
    """The one number of that name."""
    return next(number for number in comparison.numbers if number.name == name)


def shown(comparison, width=160):
    """What the terminal shows."""
    console = Console(width=width, no_color=True, file=io.StringIO())
    terminal.show(comparison, console)
    return console.file.getvalue()


def cells(text, name):
    """The words of the line that begins with a name, the name left out."""
    (line,) = [line for line in text.splitlines() if line.split() and line.split()[0] == name]
    return line.split()[1:]


def amend(store, run, **fields):
    """Change fields of a run's finished attempt on disk: what a test needs beyond the factory's numbers."""
    path = store.root / run / "record.json"
    raw = json.loads(path.read_text())
    raw["attempts"][-1] |= fields
    path.write_text(json.dumps(raw))


def put(path, written, instead):
    """Put something else into a JSON file, such as json does not write."""
    text = path.read_text()
    assert text.count(written) == 1
    path.write_text(text.replace(written, instead))


def two_attempts(tmp_path, **fields):
    """The same LoRA run in two stores, the second with changed fields: a run before and after a change of the code."""
    before, after = Store(tmp_path / "before"), Store(tmp_path / "after")
    run = finish(before, classification("lora", 1), task="sentiment")
    assert finish(after, classification("lora", 1), task="sentiment") == run
    amend(after, run, **fields)
    return before.root / run, after.root / run


def limited(folders, *limits):
    """What becomes of the one number under a limit."""
    (verdict,) = compare(*map(str, folders), limits=list(limits)).verdicts
    return verdict.outcome


def status(capsys, *arguments):
    """Exit status and what went to the two streams."""
    with pytest.raises(SystemExit) as ended:
        main(["compare", *map(str, arguments)])
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


def row(method, shape="llama", **changes):
    """A row as benchmarks/summary.py makes it."""
    exact = {"trainable_parameters": 1000, "flops": 3_000_000_000, "step_peak_bytes": 8 * MIB}
    times = {"step_seconds_median": 0.25, "step_seconds_p95": 0.3, "step_seconds_min": 0.2, "step_seconds_max": 0.4}
    ratios = {"flops_over_floor": 1.5, "step_seconds_over_floor": {"median": 1.1, "low": 1.0, "high": 1.2}}
    fields = {"method": method, "shape": shape, **exact, "total_peak_bytes": 64 * MIB, **times, "timed_steps": 12}
    return {**fields, **ratios, **changes}


def write(path, rows, **changes):
    """A file as benchmarks/step.py writes it, with changed parts; returns its path."""
    result = {
        "rows": rows,
        "about": {"rows": "row-SFT"},
        "settings": {"shape": "['llama']", "device": "cpu", "steps": "2", "out": str(path.parent)},
        "environment": ENVIRONMENT,
        "command": "python benchmarks/step.py",
        "commit": ENVIRONMENT["git_commit"],
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result | changes))
    return str(path)
