"""Records with one thing wrong: every value of a whole record replaced by values of other types, one at a time."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path

from report_factory import ENVIRONMENT, classification, config

from rowsft.method_info import MethodInfo, to_record
from rowsft.store import Store


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


#: What a value may be replaced by.
VALUES = {
    "text": "x",
    "empty": "",
    "number": 5,
    "fraction": -1.5,
    "list": [1],
    "mapping": {"a": 1},
    "null": None,
    "huge": 10**400,
    "deep": nested(60),
    "true": True,
    "path": "../../../../etc/passwd",
}
#: Takes a key away.
ABSENT = object()
EXPERIMENT = "demo"


def whole(root: Path, seed: int = 1) -> str:
    """Record a run with every field of an attempt; returns its id."""
    ledger = {"peak_bytes": 5, "parts": {"gradients": 2}, "measured_peak_bytes": 6, "unattributed_bytes": 1}
    phase = {"peak_allocated_bytes": 8, "peak_reserved_bytes": None, "resident_peak_bytes": 9, "resident_method": "x"}
    predictions = classification("lora", 1, n=20, share=0.75)
    right = sum(line["prediction"] == line["label"] for line in predictions) / 20
    with Store(root).open(config(method="lora", seed=seed, task="sentiment")) as run:
        attempt = run.begin(environment=ENVIRONMENT, concurrent_jobs=1)
        attempt.update(
            primary_metric="accuracy",
            higher_is_better=True,
            metrics={"validation": {"accuracy": 0.5, "f1": None}, "test": {"accuracy": right, "f1": 0.25}},
            parameters={"adapter": 3, "head": 2, "base": 9, "budget_asked": 3, "budget_achieved": 3}
            | {"budget_source": "budget.rows=1", "adapter_dtype": "float32", "total_trainable": 5},
            seconds={"load": 1.0, "train": 2.0},
            step_seconds={"median": 0.1, "p25": 0.1, "p75": 0.1, "p95": 0.2},
            data_seconds={"median": 0.1, "total": 0.1},
            energy={"kind": "nvml_whole_gpu", "train_joules": 3.5},
            tokens_per_second=10.0,
            steps=4,
            memory={"kind": "cpu_profiler", "select": None, "train": phase, "ledger": {"train": ledger}},
            resolved={"r": 8},
            reference={"cosine": 0.5},
            method_info=to_record(MethodInfo("lora", "LoRA", 30, "#0072B2", "s", sizes=("r",))),
            train_loss_final=0.5,
            task_about={"source": "a file", "classes": ["bad", "good"], "sizes": {"test": 20}},
            model_facts={"revision": "abc", "parameters": 9},
        )
        attempt.write_curve([{"step": step, "loss": 1 / step} for step in (1, 2, 3)])
        attempt.write_predictions(predictions)
        attempt.finish("done")
    return run.id


def places(node: object, path: tuple = ()) -> Iterator[tuple]:
    """The path of every value below a record, mappings and lists included."""
    if path:
        yield path
    steps = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for step, value in steps:
        yield from places(value, (*path, step))


def mutant(record: dict, path: tuple, value: object) -> dict:
    """The record with `value` at `path`."""
    changed = copy.deepcopy(record)
    node = changed
    for step in path[:-1]:
        node = node[step]
    if value is ABSENT:
        del node[path[-1]]
    else:
        node[path[-1]] = copy.deepcopy(value)
    return changed


def put(root: Path, name: str, record: dict | str, like: Path) -> Path:
    """A run folder of that name with a record (its id set to the name) and the files of the run `like`."""
    folder = root / name
    (folder / "attempt-1").mkdir(parents=True)
    for file in (like / "attempt-1").iterdir():
        (folder / "attempt-1" / file.name).write_bytes(file.read_bytes())
    if not isinstance(record, str):
        record = json.dumps({**record, "id": name} if isinstance(record, dict) else record)
    (folder / "record.json").write_text(record)
    return folder
