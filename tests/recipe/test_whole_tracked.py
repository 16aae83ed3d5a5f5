"""Whole runs under the W&B tracker: what is mirrored, and that a dead server changes nothing of the run."""

import csv
import json

import pytest
from safetensors.numpy import load_file
from tiny_workshop import only_run
from wandb_files import history, read_records, summary
from wandb_server import Server

from rowsft.output.quantities import MIB
from rowsft.tracking import names

pytestmark = pytest.mark.whole


def test_a_run_of_row_sft_mirrors_its_memory_and_its_selection(workshop, tmp_path):
    command = [*workshop.overrides("llama"), "method=row_sft", "experiment_name=mirrored", "seed=41"]
    command += [f"tracker.dir={tmp_path}"]
    done = workshop.rowsft("run", *command, "tracker=wandb", "tracker.mode=offline")
    assert done.returncode == 0 and "W&B" not in done.stderr, done.stderr
    record = only_run(workshop, "mirrored")
    records = read_records(tmp_path)
    shown = [row for row in history(records) if names.MEMORY_EVENT in row]
    with record.file("memory").open() as stream:
        events = list(csv.DictReader(stream))
    assert [row[names.MEMORY_EVENT] for row in shown] == [int(event["event"]) for event in events]
    assert [row[names.memory_step("gradients")] for row in shown] == pytest.approx(
        [int(event["gradients_bytes"]) / MIB for event in events]
    )
    numbers = summary(records)
    moments = record.result.memory.ledger
    peak = max((moments[phase] for phase in ("forward", "backward", "optimizer_step")), key=lambda m: m.peak_bytes)
    parts = {part: numbers[names.memory_at_peak(part)] * MIB for part in names.PARTS}
    assert parts == pytest.approx(peak.parts) and sum(parts.values()) == pytest.approx(peak.peak_bytes)
    (table,) = tmp_path.rglob(f"files/{numbers[f'{names.SELECTION}/path']}")
    rows = json.loads(table.read_text())["data"]
    adapter = load_file(record.file("adapter") / "adapter_model.safetensors")
    ids = {name.removesuffix(".row_sft_ids"): len(tensor) for name, tensor in adapter.items() if "_ids" in name}
    assert {f"base_model.model.{row[4]}": row[2] for row in rows} == ids and set(ids.values()) == {3}


def test_a_server_that_hangs_changes_nothing_of_a_run(workshop, tmp_path):
    command = [*workshop.overrides("bert"), "method=lora", "experiment_name=outage", "seed=9"]
    assert workshop.rowsft("run", *command).returncode == 0
    alone = only_run(workshop, "outage").result
    with Server("hangs") as server:
        tracked = ["tracker=wandb", "tracker.mode=online", "tracker.wait_seconds=2", f"tracker.dir={tmp_path}"]
        done = workshop.rowsft("run", *command, *tracked, "--rerun", **server.variables)
        assert server.requests
    assert done.returncode == 0 and done.stderr.count("W&B") == 1 and "W&B start failed" in done.stderr, done.stderr
    record = only_run(workshop, "outage")
    assert [attempt.state for attempt in record.attempts] == ["done", "done"]
    assert record.result.metrics == alone.metrics
    curves = [(record.folder / f"attempt-{number}" / "curve.csv").read_text() for number in (1, 2)]
    assert curves[0] == curves[1]
