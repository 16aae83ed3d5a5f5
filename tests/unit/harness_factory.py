"""Results of lm-evaluation-harness as `rowsft eval` enters them in a record; the numbers are made up."""

import numpy as np

from rowsft.record import File, HarnessResult
from rowsft.store import Store, write_jsonl

#: Of an evaluation of all documents with the prompts that a task comes with.
USUAL = {"task_version": "1.0", "prompts_sha256": "a" * 64, "documents_sha256": "b" * 64, "shots": 0}


def evaluate(store: Store, run: str, task: str, values, key: str = "acc,none", recorded=None, kept=True, **fields):
    """Add one result: `values` are the metric of each example. recorded: its value, else the mean of these.

    kept: whether the examples are in a file, and the main metric named, as older versions did not. fields: others of
    the result.
    """
    attempt = store.get(run).result
    place = store.root / run / "attempt-1"
    about = {**USUAL, "examples": len(values), "higher_is_better": {key.partition(",")[0]: True}, **fields}
    value = float(np.mean(values)) if recorded is None else recorded
    spread = {f"{key.replace(',', '_stderr,')}": 0.01}
    result = HarnessResult.of(task=task, metrics={key: value, **spread}, **about)
    if kept:
        path = place / f"lm_eval-{len(list(place.glob('lm_eval-*'))) + 1}-{task}.jsonl"
        digest = write_jsonl(path, [{"id": i, "doc": f"{i:016}", key: value} for i, value in enumerate(values)])
        result = result.changed(samples=File.of(path=f"attempt-1/{path.name}", sha256=digest), main_metric=key)
    with store._reopen(run) as folder:
        folder.put(attempt.changed(lm_eval=[*(attempt.lm_eval or []), result]))
    return result
