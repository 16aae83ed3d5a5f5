"""Runs and sweeps that are stopped, killed, share their work or die of memory: what is recorded, and what goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from tiny import tiny_bert
from tiny_workshop import last_line, only_run

from rowsft.record import PhaseMemory
from rowsft.store import Store

pytestmark = pytest.mark.whole


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
    pids = {record.latest.pid for record in records}
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
    assert record.latest.error.message
    assert "load" in record.latest.memory.ledger, "even what is killed keeps what it had measured"

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
    assert all("SIGTERM" in record.latest.error.message for record in records)


def test_a_sweep_says_of_a_job_that_was_interrupted_alone_that_it_is_not_done(workshop):
    """The signal reaches one job and not the sweep, which goes on and ends with the list of what is not done."""
    name = "one_interrupted"
    command = [*workshop.overrides("bert"), "trainer.steps=20000", f"experiment_name={name}", "method=full,none"]
    process = subprocess.Popen(
        [sys.executable, "-m", "rowsft.cli", "sweep", *command, "seed=31"],
        cwd=workshop.folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONFAULTHANDLER": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    store = Store(workshop.folder / "runs")
    deadline = time.monotonic() + 120
    while not any(record.attempts for record in store.runs(name)):
        assert process.poll() is None and time.monotonic() < deadline, "no job started"
        time.sleep(0.2)
    (record,) = store.runs(name)
    os.kill(record.latest.pid, signal.SIGINT)
    try:
        output, _ = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        # What the job was at when it did not hear the signal.
        os.kill(record.latest.pid, signal.SIGABRT)
        output, _ = process.communicate(timeout=60)
        pytest.fail(output)
    assert process.returncode == 1
    listed = output[output.index("not done:") :]
    assert "[1/2] method=full: interrupted: KeyboardInterrupt: stopped by SIGINT" in listed
    assert "2 jobs: 1 done, 1 not" in listed
    states = {record.config["method"]["name"]: record.state for record in store.runs(name)}
    assert states == {"full": "interrupted", "none": "done"}


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
    assert (record.state, record.latest.error.phase) == ("oom", "train")
    curve = (record.folder / "attempt-1" / "curve.csv").read_text().splitlines()
    assert len(curve) == 2, "the step before is on the curve, below its heading"

    memory = record.latest.memory
    assert list(memory.ledger) == ["load", "select"]
    for phase, entry in memory.ledger.items():
        assert 0 < entry.peak_bytes == sum(entry.parts.values()), phase
    measured_bytes = memory.select.peak_allocated_bytes
    assert memory.ledger["select"].peak_bytes == pytest.approx(measured_bytes, rel=0.01)
    assert memory.train.resident_peak_bytes > 0 and memory.train.peak_allocated_bytes is None
    assert memory.evaluate == PhaseMemory()

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
    assert f"by then: {memory.train.resident_peak_bytes / 2**20:,.1f} MiB resident" in rest
    assert rest[-1] == "no picture: a training step is entered once all else is done"
