"""The command line as a user meets it, where all goes well: real processes, real records."""

import csv
import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_workshop import last_line, only_run
from wandb_files import items, read_records

from rowsft.record import Energy, plain, unknown_keys
from rowsft.store import Store

# What may differ between two attempts of one run: when, how long, how much the process held, under which id.
VOLATILE = {
    *("attempt", "started_at", "ended_at", "seconds", "step_seconds", "data_seconds", "tokens_per_second", "pid"),
    *("resident_peak_bytes", "resident_method", "path", "git_dirty", "git_commit"),
}


def without_volatile(node):
    if isinstance(node, dict):
        return {key: without_volatile(value) for key, value in node.items() if key not in VOLATILE}
    return node


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_run_skip_and_identical_rerun(workshop, family):
    name = f"repeat_{family}"
    command = ["run", *workshop.overrides(family), "method=row_sft", "seed=7", f"experiment_name={name}"]
    first = workshop.rowsft(*command)
    assert first.returncode == 0, first.stderr
    record = only_run(workshop, name)
    assert last_line(first) == f"done: run {record.id} in {record.folder}"

    stamp = (record.folder / "record.json").stat().st_mtime_ns
    again = workshop.rowsft(*command)
    assert again.returncode == 0 and "done already" in again.stderr
    assert last_line(again) == last_line(first)
    assert (record.folder / "record.json").stat().st_mtime_ns == stamp, "a run that is done is not touched"

    rerun = workshop.rowsft(*command, "--rerun")
    assert rerun.returncode == 0, rerun.stderr
    one, two = only_run(workshop, name).attempts
    assert without_volatile(plain(one)) == without_volatile(plain(two))
    for file in ("predictions.jsonl", "curve.csv", "adapter/adapter_model.safetensors"):
        a, b = (record.folder / f"attempt-{number}" / file for number in (1, 2))
        assert a.read_bytes() == b.read_bytes(), f"{file} differs between two attempts of one seed"


def test_record_holds_what_the_report_needs(workshop):
    name = "whole"
    done = workshop.rowsft("run", *workshop.overrides("bert"), "method=row_sft", f"experiment_name={name}")
    assert done.returncode == 0, done.stderr
    record = only_run(workshop, name)
    attempt = record.result
    assert {"validation", "test"} == set(attempt.metrics)
    for phase in ("data", "load", "select", "attach", "train", "evaluate", "save", "measure", "total"):
        assert getattr(attempt.seconds, phase) > 0, phase
    assert attempt.memory.kind == "cpu_profiler"
    for phase in (attempt.memory.select, attempt.memory.train, attempt.memory.evaluate):
        assert phase.peak_allocated_bytes > phase.step_peak_new_bytes > 0
        assert phase.peak_reserved_bytes is None, "a CPU has no reserved memory; null, never 0"
    assert list(unknown_keys(attempt)) == [], "the published schema names all that a run records"
    assert attempt.step_seconds.timed_steps == 5
    assert 0 < attempt.data_seconds.total < attempt.seconds.train
    assert attempt.energy == Energy(), "no GPU counts it here: absent, never 0"
    assert attempt.tokens_per_second > 0
    rows = [json.loads(line) for line in record.file("predictions").read_text().splitlines()]
    assert [row["split"] for row in rows].count("test") == attempt.task_about.sizes["test"]
    hits = [row["prediction"] == row["label"] for row in rows if row["split"] == "test"]
    assert sum(hits) / len(hits) == pytest.approx(attempt.metrics["test"]["accuracy"])
    saved = load_file(record.file("adapter") / "adapter_model.safetensors")
    trained = sum(tensor.numel() for tensor in saved.values() if tensor.dtype != torch.int64)
    assert trained == attempt.parameters.total_trainable


def test_how_inputs_were_had_is_in_the_record(workshop):
    """The setting is the method's own; what came of it is counted over the layers. Other methods have neither."""
    name = "inputs"
    for method in (["row_sft"], ["row_sft", "method.recompute_inputs=false"], ["lora"]):
        overrides = [*workshop.overrides("llama"), f"method={method[0]}", *method[1:], "trainer.memory_probe_steps=0"]
        done = workshop.rowsft("run", *overrides, f"experiment_name={name}")
        assert done.returncode == 0, done.stderr
    records = Store(workshop.folder / "runs").runs(name)
    found = {record.config["method"].get("recompute_inputs"): record.result for record in records}
    layers = len(found[True].resolved["target_modules"])
    # What q, k and v of the first layer read has no history: nothing before it is trained.
    assert plain(found[True].inputs) == {"rebuilt": layers - 3, "kept": 3}
    assert plain(found[False].inputs) == {"rebuilt": 0, "kept": layers}
    assert plain(found[None].inputs) is None

    reported = workshop.rowsft("report", "--store", "runs", "--experiment", name, "--out", "reports/inputs")
    assert reported.returncode == 0, reported.stderr
    text = (workshop.folder / "reports" / "inputs" / "report.md").read_text()
    assert "row-SFT (recompute_inputs=true)" in text and "row-SFT (recompute_inputs=false)" in text


def test_the_memory_ledger_adds_up_to_what_was_measured(workshop):
    name = "ledger"
    done = workshop.rowsft("run", *workshop.overrides("llama"), "method=row_sft", f"experiment_name={name}")
    assert done.returncode == 0, done.stderr
    record = only_run(workshop, name)
    memory = record.result.memory
    assert list(memory.ledger) == ["load", "select", "evaluate", "forward", "backward", "optimizer_step"]
    for phase, entry in memory.ledger.items():
        assert entry.peak_bytes == sum(entry.parts.values()), phase
    step = max((memory.ledger[phase] for phase in ("forward", "backward", "optimizer_step")), key=measured)
    assert step.measured_peak_bytes == memory.train.peak_allocated_bytes
    for entry in (step, memory.ledger["select"], memory.ledger["evaluate"]):
        assert 0 <= entry.unattributed_bytes <= 0.01 * entry.measured_peak_bytes
        assert abs(entry.peak_bytes - entry.measured_peak_bytes) <= 0.01 * entry.measured_peak_bytes
    for phase in ("load", "select"):
        assert memory.ledger[phase].parts["trainable_weights"] == 0
    trained = record.result.parameters.total_trainable
    assert memory.ledger["backward"].parts["trainable_weights"] == 4 * trained
    shown = workshop.rowsft("report", "memory", record.id[:6], "--out", "memory.png")
    assert shown.returncode == 0, shown.stderr
    assert "saved activations" in shown.stdout
    assert (workshop.folder / "memory.png").read_bytes().startswith(b"\x89PNG")


def measured(entry):
    return entry.measured_peak_bytes or 0


def test_data_order_and_start_are_shared_by_all_methods(workshop):
    """Every method starts from the same loss on the same first batch: same head, same data, no change at step 0."""
    losses = {}
    for method in ("head", "row_sft", "lora", "dora", "full"):
        name = f"start_{method}"
        done = workshop.rowsft("run", *workshop.overrides("bert"), f"method={method}", f"experiment_name={name}")
        assert done.returncode == 0, done.stderr
        curve = only_run(workshop, name).file("curve").read_text().splitlines()
        losses[method] = float(curve[1].split(",")[1])
    # DoRA divides by and multiplies with the norm of each row, which rounds.
    assert losses.pop("dora") == pytest.approx(losses["full"], rel=1e-6)
    assert len(set(losses.values())) == 1, losses


def test_the_last_step_is_on_the_curve(workshop):
    command = [*workshop.overrides("bert"), "method=head", "experiment_name=sparse", "trainer.logging_steps=4"]
    assert workshop.rowsft("run", *command).returncode == 0
    curve = only_run(workshop, "sparse").file("curve").read_text().splitlines()
    assert [line.split(",")[0] for line in curve] == ["step", "4", "6"]


def test_offline_wandb_mirrors_the_record(workshop):
    folder = workshop.folder / "tracked"
    folder.mkdir()
    command = [*workshop.overrides("bert"), "method=lora", "experiment_name=tracked", "seed=5"]
    done = workshop.rowsft("run", *command, "tracker=wandb", "tracker.mode=offline", f"tracker.dir={folder}")
    assert done.returncode == 0, done.stderr
    record = only_run(workshop, "tracked")
    records = read_records(folder)
    (opened,) = [entry.run for entry in records if entry.HasField("run")]
    assert (opened.run_group, opened.job_type) == ("tracked", "lora")
    assert items(opened.config.update)["seed"] == 5
    curve = [items(entry.history.item) for entry in records if entry.HasField("history")]
    losses = [row["train/loss"] for row in curve if "train/loss" in row]
    with record.file("curve").open() as stream:
        assert losses == pytest.approx([float(row["loss"]) for row in csv.DictReader(stream)])
    summary = {}
    for entry in records:
        if entry.HasField("summary"):
            summary |= items(entry.summary.update)
    assert summary["metrics/test/accuracy"] == record.result.metrics["test"]["accuracy"]
    assert summary["memory/train/peak_allocated_bytes"] == record.result.memory.train.peak_allocated_bytes
    assert [entry.exit.exit_code for entry in records if entry.HasField("exit")] == [0]
