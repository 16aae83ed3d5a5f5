"""The command line as a user meets it: real processes, real records, every way a run can end."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_bert
from wandb_files import items, read_records

from rowsft.store import Store

# What may differ between two attempts of one run: when, how long, how much the process held, under which id.
VOLATILE = {
    *("attempt", "started_at", "ended_at", "seconds", "step_seconds", "data_seconds", "tokens_per_second", "pid"),
    *("resident_peak_bytes", "resident_method", "path", "git_dirty", "git_commit"),
}


def last_line(done: subprocess.CompletedProcess) -> str:
    return done.stdout.strip().splitlines()[-1]


def only_run(workshop, experiment: str):
    (record,) = Store(workshop.folder / "runs").runs(experiment)
    return record


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
    assert without_volatile(one) == without_volatile(two)
    for file in ("predictions.jsonl", "curve.csv", "adapter/adapter_model.safetensors"):
        a, b = (record.folder / f"attempt-{number}" / file for number in (1, 2))
        assert a.read_bytes() == b.read_bytes(), f"{file} differs between two attempts of one seed"


def test_record_holds_what_the_report_needs(workshop):
    name = "whole"
    done = workshop.rowsft("run", *workshop.overrides("bert"), "method=row_sft", f"experiment_name={name}")
    assert done.returncode == 0, done.stderr
    record = only_run(workshop, name)
    attempt = record.result
    assert {"validation", "test"} == set(attempt["metrics"])
    for phase in ("data", "load", "select", "attach", "train", "evaluate", "save", "measure", "total"):
        assert attempt["seconds"][phase] > 0, phase
    assert attempt["memory"]["kind"] == "cpu_profiler"
    for phase in ("select", "train", "evaluate"):
        assert attempt["memory"][phase]["peak_allocated_bytes"] > attempt["memory"][phase]["step_peak_new_bytes"] > 0
        assert attempt["memory"][phase]["peak_reserved_bytes"] is None, "a CPU has no reserved memory; null, never 0"
    assert attempt["step_seconds"]["timed_steps"] == 5
    assert 0 < attempt["data_seconds"]["total"] < attempt["seconds"]["train"]
    assert "energy" not in attempt, "no GPU counts it here: absent, never 0"
    assert attempt["tokens_per_second"] > 0
    rows = [json.loads(line) for line in record.file("predictions").read_text().splitlines()]
    assert [row["split"] for row in rows].count("test") == attempt["task_about"]["sizes"]["test"]
    hits = [row["prediction"] == row["label"] for row in rows if row["split"] == "test"]
    assert sum(hits) / len(hits) == pytest.approx(attempt["metrics"]["test"]["accuracy"])
    saved = load_file(record.file("adapter") / "adapter_model.safetensors")
    trained = sum(tensor.numel() for tensor in saved.values() if tensor.dtype != torch.int64)
    assert trained == attempt["parameters"]["total_trainable"]


def test_how_inputs_were_had_is_in_the_record(workshop):
    """The setting is the method's own; what came of it is counted over the layers. Other methods have neither."""
    name = "inputs"
    for method in (["row_sft"], ["row_sft", "method.recompute_inputs=false"], ["lora"]):
        overrides = [*workshop.overrides("llama"), f"method={method[0]}", *method[1:], "trainer.memory_probe_steps=0"]
        done = workshop.rowsft("run", *overrides, f"experiment_name={name}")
        assert done.returncode == 0, done.stderr
    records = Store(workshop.folder / "runs").runs(name)
    found = {record.config["method"].get("recompute_inputs"): record.result for record in records}
    layers = len(found[True]["knobs"]["target_modules"])
    # What q, k and v of the first layer read has no history: nothing before it is trained.
    assert found[True]["inputs"] == {"rebuilt": layers - 3, "kept": 3}
    assert found[False]["inputs"] == {"rebuilt": 0, "kept": layers}
    assert "inputs" not in found[None]

    reported = workshop.rowsft("report", "--store", "runs", "--experiment", name, "--out", "reports/inputs")
    assert reported.returncode == 0, reported.stderr
    text = (workshop.folder / "reports" / "inputs" / "report.md").read_text()
    assert "row-SFT (recompute_inputs=True)" in text and "row-SFT (recompute_inputs=False)" in text


def test_the_memory_ledger_adds_up_to_what_was_measured(workshop):
    name = "ledger"
    done = workshop.rowsft("run", *workshop.overrides("llama"), "method=row_sft", f"experiment_name={name}")
    assert done.returncode == 0, done.stderr
    record = only_run(workshop, name)
    memory = record.result["memory"]
    assert list(memory["ledger"]) == ["load", "select", "evaluate", "forward", "backward", "optimizer_step"]
    for phase, entry in memory["ledger"].items():
        assert entry["peak_bytes"] == sum(entry["parts"].values()), phase
    step = max((memory["ledger"][phase] for phase in ("forward", "backward", "optimizer_step")), key=measured)
    assert step["measured_peak_bytes"] == memory["train"]["peak_allocated_bytes"]
    for entry in (step, memory["ledger"]["select"], memory["ledger"]["evaluate"]):
        assert 0 <= entry["unattributed_bytes"] <= 0.01 * entry["measured_peak_bytes"]
        assert abs(entry["peak_bytes"] - entry["measured_peak_bytes"]) <= 0.01 * entry["measured_peak_bytes"]
    for phase in ("load", "select"):
        assert memory["ledger"][phase]["parts"]["trainable_weights"] == 0
    trained = record.result["parameters"]["total_trainable"]
    assert memory["ledger"]["backward"]["parts"]["trainable_weights"] == 4 * trained
    shown = workshop.rowsft("report", "memory", record.id[:6], "--out", "memory.png")
    assert shown.returncode == 0, shown.stderr
    assert "saved activations" in shown.stdout
    assert (workshop.folder / "memory.png").read_bytes().startswith(b"\x89PNG")


def measured(entry):
    return entry["measured_peak_bytes"] or 0


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


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["budget.rows=4096"], "rows=4096 exceeds layer"),
        (["task.columns.text=sentence"], "sentence"),
        (["task.data.path=absent.csv"], "absent.csv"),
        (["model.target_modules=[nothing_like_it]"], "nothing_like_it"),
        (["model.source=./absent-folder"], "absent-folder"),
        (["method=lorra"], "lora"),
        (["trainer.step=3"], "trainer.steps"),
        pytest.param(
            ["trainer.device=cuda"],
            "no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device"),
        ),
        (["task.max_length=65"], "64 positions; lower it to 64"),
        (["seed=x"], "seed=x"),
        (["task.regression=true"], "pearson or spearman"),
        (["task.max_length=long"], "task.max_length=long: expected a whole number"),
        (["trainer.evaluate=[]"], "trainer.evaluate=[]"),
        (["task.labels=[bad,good,bad]"], "named twice"),
        (["task.limits.train=true"], "task.limits.train=true: expected a whole number or null"),
        (["task.data.split_seed=x"], "task.data.split_seed=x"),
        (["+model.load_in_4bit=true"], "model.load_in_4bit: nothing reads this key"),
        (["model.head_modules=[no_such_head]", "method=lora"], "no_such_head"),
    ],
)
def test_bad_input_is_one_line_and_status_2(workshop, extra, said):
    done = workshop.rowsft("run", *workshop.overrides("bert"), "experiment_name=bad", *extra)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("rowsft: error: ") and said in line
    assert Store(workshop.folder / "runs").runs("bad") == []


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", '{"model_type": "bert", "hidden_act": "nope"}'),
        ("config.json", '{"model_type": "bert", "dtype": "nope"}'),
        ("tokenizer.json", "{}"),
        ("model.safetensors.index.json", "{"),
    ],
)
def test_a_broken_model_folder_is_one_line_and_leaves_no_trace(workshop, tmp_path, file, content):
    folder = tmp_path / "broken"
    shutil.copytree(workshop.folder / "models" / "bert", folder)
    (folder / file).write_text(content)
    if "index" in file:
        (folder / "model.safetensors").unlink()
    # After the others, which it replaces.
    done = workshop.rowsft("run", *workshop.overrides("bert"), "method=none", f"model.source={folder}", "seed=77")
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"rowsft: error: model.source={folder}: ")
    assert all(record.config["seed"] != 77 for record in Store(workshop.folder / "runs").runs())


def test_sweep_uses_fresh_processes_and_survives_a_failure(workshop):
    """One job of four cannot be run and leaves no trace; the others are recorded, by processes of their own, and a
    second sweep skips them."""
    command = ["sweep", *workshop.overrides("bert"), "experiment_name=swept", "method=head,lora", "budget.rows=null"]
    sizes = ["budget.params=900,1"]
    done = workshop.rowsft(*command, *sizes)
    assert done.returncode == 1, done.stdout
    records = Store(workshop.folder / "runs").runs("swept")
    states = sorted((record.config["method"]["name"], record.state) for record in records)
    assert states == [("head", "done"), ("lora", "done")]
    pids = {record.latest["pid"] for record in records}
    assert len(pids) == 2
    again = workshop.rowsft(*command, *sizes)
    assert again.stdout.count("done already") == 3


@pytest.mark.parametrize(
    ("number", "state"),
    [(signal.SIGKILL, "interrupted"), (signal.SIGINT, "interrupted"), (signal.SIGTERM, "interrupted")],
)
def test_a_stopped_run_says_so_and_starts_again(workshop, number, state):
    name = f"stopped_{number.name}"
    command = [*workshop.overrides("bert"), "method=full", "trainer.steps=20000", f"experiment_name={name}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "rowsft.cli", "run", *command],
        cwd=workshop.folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert any("examples:" in line for line in process.stdout), "the run did not come as far as training"
    time.sleep(1)
    process.send_signal(number)
    status = process.wait(timeout=60)
    assert status == (-9 if number == signal.SIGKILL else 130)
    record = only_run(workshop, name)
    assert record.state == state
    assert record.latest["error"]["message"]
    assert "load" in record.latest["memory"]["ledger"], "even what is killed keeps what it had measured"

    listed = json.loads(workshop.rowsft("runs", "--store", "runs", "--experiment", name, "--json").stdout)
    assert [row["state"] for row in listed] == [state]


def test_two_sweeps_at_once_share_the_work(workshop):
    command = ["sweep", *workshop.overrides("bert"), "method=lora,head", "seed=11", "experiment_name=together"]
    start = [sys.executable, "-m", "rowsft.cli", *command]
    both = [
        subprocess.Popen(start, cwd=workshop.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    records = Store(workshop.folder / "runs").runs("together")
    assert len(records) == 2 and all(len(record.attempts) == 1 for record in records)


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_stopped_sweep_stops_its_jobs(workshop, at_once):
    name = f"stopped_sweep_{at_once}"
    # Seeds of its own: a run is the same run whatever experiment asks for it.
    seeds = f"seed={at_once}1,{at_once}2"
    command = [*workshop.overrides("bert"), "method=full", "trainer.steps=20000", f"experiment_name={name}", seeds]
    process = subprocess.Popen(
        [sys.executable, "-m", "rowsft.cli", "sweep", *command, f"hydra.launcher.jobs={at_once}"],
        cwd=workshop.folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    store = Store(workshop.folder / "runs")
    deadline = time.monotonic() + 120
    while sum(len(record.attempts) for record in store.runs(name)) < at_once:
        assert process.poll() is None and time.monotonic() < deadline, "no job started"
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 130
    records = store.runs(name)
    assert [record.state for record in records] == ["interrupted"] * at_once
    assert all("SIGTERM" in record.latest["error"]["message"] for record in records)


def test_the_last_step_is_on_the_curve(workshop):
    command = [*workshop.overrides("bert"), "method=head", "experiment_name=sparse", "trainer.logging_steps=4"]
    assert workshop.rowsft("run", *command).returncode == 0
    curve = only_run(workshop, "sparse").file("curve").read_text().splitlines()
    assert [line.split(",")[0] for line in curve] == ["step", "4", "6"]


def test_bad_input_found_before_the_data_leaves_no_run(workshop):
    command = [*workshop.overrides("bert"), "method=lora", "method.scaling=-1", "experiment_name=traceless"]
    assert workshop.rowsft("run", *command).returncode == 2
    assert Store(workshop.folder / "runs").runs("traceless") == []


def test_diverged_run_is_recorded_as_failed(workshop):
    command = [*workshop.overrides("bert"), "method=full", "experiment_name=diverged", "trainer.learning_rate=1e30"]
    done = workshop.rowsft("run", *command, "trainer.max_grad_norm=0")
    assert done.returncode == 1
    record = only_run(workshop, "diverged")
    assert record.state == "failed"
    assert "lower trainer.learning_rate" in record.latest["error"]["message"]
    assert (Path(record.folder) / "attempt-1" / "curve.csv").exists()


# The command line in a process that may take little more than it holds when training begins.
LIMITED_IN_TRAINING = """
import contextlib, io, resource, sys
import psutil
from rowsft.cli.main import main

class Limiting(io.StringIO):
    def write(self, text):
        if "training for" in text:
            limit = psutil.Process().memory_info().vms + 2**26
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        return sys.__stdout__.write(text)

with contextlib.redirect_stdout(Limiting()):
    main(sys.argv[1:])
"""


def test_a_run_that_dies_of_memory_keeps_what_it_measured(workshop):
    """Scoring and a step on short texts, then a step whose padding to one long text asks for more than there is."""
    folder, size, splits = workshop.folder / "oom", 250, ("train", "validation", "test")
    shutil.copytree(workshop.folder / "models" / "bert", folder)
    # So wide that one tensor of that step is larger than all that was allocated before.
    tiny_bert(num_labels=2, intermediate_size=4096).save_pretrained(folder)
    texts = [" ".join(["w7"] * 64), *(f"w{number % 100} w{number // 100}" for number in range(2 * size - 1))]
    rows = [{"text": text, "label": ["bad", "good"][number % 2]} for number, text in enumerate(texts)]
    for name, some in zip(splits, (rows, rows[:8], rows[8:16]), strict=True):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    data = ["task.data.path=null", *(f"task.data.{name}_path=oom/{name}.jsonl" for name in splits)]
    # Under this seed the long one is in the second batch.
    settings = [f"trainer.batch_size={size}", "trainer.steps=2", "trainer.calibration_batches=1", "seed=2"]
    command = ["run", *workshop.overrides("bert"), "model.source=./oom", *data, *settings]
    command += ["method=row_sft", "experiment_name=oom"]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED_IN_TRAINING, *command],
        cwd=workshop.folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    record = only_run(workshop, "oom")
    assert last_line(done) == f"oom: run {record.id} in {record.folder}"
    assert (record.state, record.latest["error"]["phase"]) == ("oom", "train")
    curve = (record.folder / "attempt-1" / "curve.csv").read_text().splitlines()
    assert len(curve) == 2, "the step before is on the curve, below its heading"

    memory = record.latest["memory"]
    assert list(memory["ledger"]) == ["load", "select"]
    for phase, entry in memory["ledger"].items():
        assert 0 < entry["peak_bytes"] == sum(entry["parts"].values()), phase
    measured_bytes = memory["select"]["peak_allocated_bytes"]
    assert memory["ledger"]["select"]["peak_bytes"] == pytest.approx(measured_bytes, rel=0.01)
    assert memory["train"]["resident_peak_bytes"] > 0 and memory["train"]["peak_allocated_bytes"] is None
    assert memory["evaluate"] is None

    reported = workshop.rowsft("report", "--store", "runs", "--experiment", "oom", "--out", "reports/oom")
    assert reported.returncode == 0, reported.stderr
    lines = (workshop.folder / "reports" / "oom" / "report.md").read_text().splitlines()
    (row,) = [line for line in lines if record.id in line]
    assert row.startswith("| row-SFT | 2 | oom | train | RuntimeError: ") and "can't allocate memory" in row
    shown = workshop.rowsft("report", "memory", record.id)
    assert shown.returncode == 0, shown.stderr
    heading, *rest = shown.stdout.splitlines()[1:]
    assert [name for name in ("load", "select", "train", "forward") if name in heading] == ["load", "select"]
    assert f"run {record.id} ended as oom in train: RuntimeError: " in shown.stdout
    assert f"by then: {memory['train']['resident_peak_bytes'] / 2**20:,.1f} MiB resident" in rest
    assert rest[-1] == "no picture: a training step is entered once all else is done"


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
    losses = [row["train/loss"] for row in curve]
    with record.file("curve").open() as stream:
        assert losses == pytest.approx([float(row["loss"]) for row in csv.DictReader(stream)])
    summary = {}
    for entry in records:
        if entry.HasField("summary"):
            summary |= items(entry.summary.update)
    assert summary["metrics/test/accuracy"] == record.result["metrics"]["test"]["accuracy"]
    assert summary["memory/train/peak_allocated_bytes"] == record.result["memory"]["train"]["peak_allocated_bytes"]
    assert [entry.exit.exit_code for entry in records if entry.HasField("exit")] == [0]
