"""`rowsft report memory`: whatever there is of a run's memory."""

import pytest
from report_factory import ENVIRONMENT, config

from rowsft.errors import UserError
from rowsft.report import memory
from rowsft.store import Store


def run_with(store, state, memory, error=None):
    with store.open(config(seed=len(store.runs()))) as run:
        attempt = run.begin(environment=ENVIRONMENT)
        attempt.update(memory=memory)
        attempt.finish(state, error=error)
    return run.id


def test_memory_shows_what_there_is(tmp_path):
    """Whether the run trained or not, was probed or not, and wherever it ended."""
    store = Store(tmp_path)
    loaded = {"peak_bytes": 3 * 2**20, "parts": {"base_weights": 3 * 2**20}, "measured_peak_bytes": None}
    ledger = {"load": loaded | {"unattributed_bytes": None}}
    untrained = run_with(store, "done", {"train": None, "ledger": ledger})
    table, said = memory.build(tmp_path, untrained, None)
    assert [str(column.header) for column in table.columns] == ["MiB at the peak", "load"]
    assert said == ["no picture: nothing was trained"]

    unprobed = run_with(store, "done", {"train": {"resident_peak_bytes": 5}, "ledger": ledger})
    _, said = memory.build(tmp_path, unprobed, None)
    assert said == ["no picture: no training step was entered; run it with trainer.memory_probe_steps=1 and --rerun"]

    reached = {"peak_allocated_bytes": 7 * 2**30, "peak_reserved_bytes": 2**33, "process_peak_bytes": None}
    error = {"type": "OutOfMemoryError", "message": "no room\nfor it", "traceback": "t", "phase": "data"}
    table, said = memory.build(tmp_path, run := run_with(store, "oom", {"load": reached}, error), None)
    assert table is None
    assert said == [
        f"run {run} ended as oom in data: OutOfMemoryError: no room",
        "by then: 7,168.0 MiB allocated, 8,192.0 MiB reserved",
        "no picture: a training step is entered once all else is done",
    ]
    with pytest.raises(UserError, match="has no memory ledger; run it with trainer.memory_probe_steps=1"):
        memory.build(tmp_path, run_with(store, "done", {}), None)


@pytest.mark.parametrize("phase", ["kind", "other", "attach", None])
def test_a_phase_of_which_no_memory_is_kept_says_nothing_of_it(tmp_path, phase):
    error = {"type": "ValueError", "message": "no", "traceback": "t", "phase": phase}
    run = run_with(Store(tmp_path), "failed", {"kind": "cpu_profiler", "train": None}, error)
    path = tmp_path / run / "record.json"
    path.write_text(path.read_text().replace('"kind":', '"other": {"peak_allocated_bytes": "much"}, "kind":'))
    table, said = memory.build(tmp_path, run, None)
    where = f" in {phase}" if phase else ""
    assert table is None and said[0] == f"run {run} ended as failed{where}: ValueError: no" and len(said) == 2
