"""`measure=alone`: step times and memory of a finished run measured again from its adapter, all else untouched."""

import json
import shutil
import signal

import psutil
import pytest
from engine_sweeps import started

from rowsft.config.compose import compose
from rowsft.config.run_spec import run_spec
from rowsft.config.settings import trainer_settings
from rowsft.errors import UserError
from rowsft.record import as_measured, plain
from rowsft.runner.alone import measure_alone
from rowsft.runner.run import run
from rowsft.store import Store

pytestmark = pytest.mark.whole

KINDS = [
    ("llama", ["method=row_sft", "method.dropout=0.1"]),
    ("llama", ["method=row_sft", "method.channel=neurons", "budget.rows=2", "trainer.gradient_accumulation=2"]),
    ("bert", ["method=row_sft", "method.channel=columns", "method.importance=l2"]),
    ("bert", ["method=lora", "trainer.gradient_checkpointing=true"]),
    ("llama", ["method=dora", "trainer=bf16"]),
    ("bert", ["method=shira"]),
    ("bert", ["method=pissa"]),
    ("llama", ["method=cla"]),
    ("bert", ["method=full"]),
    ("llama", ["method=full"]),
    ("bert", ["method=head"]),
]


def settled(workshop, store, family, overrides):
    config = compose([*workshop.overrides(family), f"store={store}", "measure_steps=5", *overrides])
    return run_spec(config), trainer_settings(config)


def finished(workshop, store, family, overrides):
    spec, settings = settled(workshop, store, family, overrides)
    outcome = run(spec, settings, False, say=str)
    assert outcome.state == "done", outcome.message
    return spec, settings


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("family", "overrides"), KINDS, ids=[f"{family} {' '.join(rest)}" for family, rest in KINDS])
def test_memory_is_the_runs_own_and_nothing_else_changes(workshop, tmp_path, monkeypatch, family, overrides):
    monkeypatch.setenv("ROWSFT_CONCURRENT_JOBS", "2")
    spec, settings = finished(workshop, tmp_path, family, overrides)
    monkeypatch.setenv("ROWSFT_CONCURRENT_JOBS", "1")
    before, files = Store(tmp_path).get(spec.run_id), contents(spec.folder / "attempt-1")

    said = []
    outcome = measure_alone(spec, settings, False, said.append)
    assert (outcome.state, outcome.message) == ("done", "")
    record = Store(tmp_path).get(spec.run_id)
    alone = record.attempts[0].alone
    # Exact on a CPU: the same model, adapter, batch and optimizer.
    for phase in ("train", "evaluate"):
        measured, then = getattr(alone.memory, phase), getattr(before.result.memory, phase)
        assert measured.peak_allocated_bytes == then.peak_allocated_bytes
    assert alone.steps == 5 and alone.step_seconds.timed_steps == 4 and alone.step_seconds.median > 0
    assert alone.concurrent_jobs == 1 and alone.environment.packages["torch"]

    assert contents(spec.folder / "attempt-1") == files
    assert len(record.attempts) == 1 and record.state == "done"
    raw = {key: value for key, value in plain(record.attempts[0]).items() if key != "alone"}
    assert raw == plain(before.attempts[0])
    # What reports read.
    result = record.result
    assert before.result.concurrent_jobs == 2 and result.concurrent_jobs == 1
    assert result.step_seconds == alone.step_seconds and result.memory.train == alone.memory.train
    assert (result.seconds, result.metrics) == (before.result.seconds, before.result.metrics)
    assert result.memory.select == before.result.memory.select


def test_what_was_measured_alone_is_not_measured_again_unless_asked(workshop, tmp_path):
    spec, settings = finished(workshop, tmp_path, "bert", ["method=lora"])
    assert "measured alone already" in measure_alone(spec, settings, False, str).message
    assert Store(tmp_path).get(spec.run_id).attempts[0].alone.measured_at is None
    assert measure_alone(spec, settings, True, str).message == ""
    assert Store(tmp_path).get(spec.run_id).attempts[0].alone.measured_at


def test_memory_of_a_grid_that_measured_none_is_measured(workshop, tmp_path, monkeypatch):
    monkeypatch.setenv("ROWSFT_CONCURRENT_JOBS", "2")
    spec, settings = finished(workshop, tmp_path, "bert", ["method=lora", "trainer.memory_probe_steps=0"])
    monkeypatch.delenv("ROWSFT_CONCURRENT_JOBS")
    assert Store(tmp_path).get(spec.run_id).result.memory.train.peak_allocated_bytes is None
    measure_alone(spec, settings, False, str)
    assert Store(tmp_path).get(spec.run_id).result.memory.train.peak_allocated_bytes > 0


def test_what_cannot_be_measured_says_why_and_leaves_the_store_as_it_is(workshop, tmp_path, monkeypatch):
    spec, settings = settled(workshop, tmp_path, "bert", ["method=lora"])
    with pytest.raises(UserError, match="not done, so there is nothing to measure; run it without measure=alone"):
        measure_alone(spec, settings, False, str)
    assert not spec.folder.exists()
    finished(workshop, tmp_path, "bert", ["method=lora"])
    monkeypatch.setenv("ROWSFT_CONCURRENT_JOBS", "2")
    with pytest.raises(UserError, match=r"2 jobs run side by side; expected one: set hydra\.launcher\.jobs=1"):
        measure_alone(spec, settings, True, str)
    monkeypatch.delenv("ROWSFT_CONCURRENT_JOBS")
    before = (spec.folder / "record.json").read_bytes()
    shutil.rmtree(spec.folder / "attempt-1" / "adapter")
    with pytest.raises(UserError, match="its adapter is gone"):
        measure_alone(spec, settings, True, str)
    assert (spec.folder / "record.json").read_bytes() == before and not list(spec.folder.glob(".aside*"))


def test_an_adapter_of_another_size_is_refused(workshop, tmp_path):
    spec, settings = finished(workshop, tmp_path, "bert", ["method=lora"])
    other, _ = finished(workshop, tmp_path, "bert", ["method=lora", "budget.rows=5"])
    shutil.rmtree(spec.folder / "attempt-1" / "adapter")
    shutil.copytree(other.folder / "attempt-1" / "adapter", spec.folder / "attempt-1" / "adapter")
    record = spec.folder / "record.json"
    text = record.read_text()
    known, other_known = (Store(tmp_path).get(run.run_id).result.files["adapter"].sha256 for run in (spec, other))
    record.write_text(text.replace(known, other_known))
    with pytest.raises(UserError, match="its adapter trains .* its record says"):
        measure_alone(spec, settings, True, str)


@pytest.mark.parametrize("fault", ["of another run", "changed", "cut off", "without its configuration"])
def test_an_adapter_that_is_not_the_recorded_one_is_refused(workshop, tmp_path, fault):
    spec, settings = finished(workshop, tmp_path, "bert", ["method=lora"])
    adapter = spec.folder / "attempt-1" / "adapter"
    weights = adapter / "adapter_model.safetensors"
    if fault == "of another run":
        other, _ = finished(workshop, tmp_path, "bert", ["method=lora", "seed=1"])
        shutil.copy(other.folder / "attempt-1" / "adapter" / weights.name, weights)
    elif fault == "changed":
        content = bytearray(weights.read_bytes())
        content[-5] ^= 0x55
        weights.write_bytes(content)
    elif fault == "cut off":
        weights.write_bytes(weights.read_bytes()[:1000])
    else:
        (adapter / "adapter_config.json").unlink()
    before = (spec.folder / "record.json").read_bytes()
    with pytest.raises(UserError, match=r"its adapter is not the one that was recorded .*; run it again \(--rerun\)"):
        measure_alone(spec, settings, True, str)
    assert (spec.folder / "record.json").read_bytes() == before


def test_a_failure_leaves_the_record_as_it_was(workshop, tmp_path, monkeypatch):
    spec, settings = finished(workshop, tmp_path, "bert", ["method=lora"])
    before = (spec.folder / "record.json").read_bytes()

    def no_memory(job):
        raise MemoryError("none is left")

    monkeypatch.setattr("rowsft.runner.alone.train", no_memory)
    outcome = measure_alone(spec, settings, True, str)
    assert outcome.state == "oom" and "MemoryError: none is left; the record is as it was" in outcome.message
    assert (spec.folder / "record.json").read_bytes() == before


def test_a_run_that_trains_nothing_has_nothing_to_measure(workshop, tmp_path):
    spec, settings = finished(workshop, tmp_path, "bert", ["method=none"])
    assert measure_alone(spec, settings, True, str).message == "trains nothing"


def test_a_result_that_was_not_measured_again_is_as_it_is(workshop, tmp_path):
    spec, _ = finished(workshop, tmp_path, "bert", ["method=head"])
    attempt = Store(tmp_path).get(spec.run_id).attempts[0]
    assert as_measured(attempt) is attempt
    json.dumps(plain(attempt))


def test_a_sweep_measures_what_was_side_by_side_and_skips_it_the_next_time(workshop, tmp_path):
    jobs = [*workshop.overrides("bert"), f"store={tmp_path / 'runs'}", "method=lora", "seed=1,2"]
    done = workshop.rowsft("sweep", *jobs, "hydra.launcher.jobs=2")
    assert done.returncode == 0, done.stderr
    refused = workshop.rowsft("sweep", *jobs, "measure=alone", "measure_steps=4", "hydra.launcher.jobs=2")
    assert refused.returncode == 1 and refused.stdout.count("set hydra.launcher.jobs=1") == 4
    assert all(record.result.concurrent_jobs == 2 for record in Store(tmp_path / "runs").runs())
    alone = workshop.rowsft("sweep", *jobs, "measure=alone", "measure_steps=4")
    assert alone.returncode == 0 and "2 jobs: 2 done" in alone.stdout, alone.stdout + alone.stderr
    records = Store(tmp_path / "runs").runs()
    assert [(record.result.concurrent_jobs, record.result.alone.steps) for record in records] == [(1, 4)] * 2
    before = [(record.folder / "record.json").read_bytes() for record in records]
    again = workshop.rowsft("sweep", *jobs, "measure=alone", "measure_steps=4", "hydra.launcher.jobs=2")
    assert again.returncode == 0 and again.stdout.count("done already") == 2
    one = workshop.rowsft("run", *jobs[:-1], "seed=2", "measure=alone")
    assert one.returncode == 0 and "measured alone already" in one.stderr
    absent = workshop.rowsft("run", *jobs[:-1], "seed=3", "measure=alone")
    assert absent.returncode == 2 and "not done, so there is nothing to measure" in absent.stderr
    assert [(record.folder / "record.json").read_bytes() for record in Store(tmp_path / "runs").runs()] == before


def test_a_measurement_that_is_killed_in_a_sweep_leaves_the_record_as_it_was(workshop, tmp_path, monkeypatch):
    monkeypatch.setenv("ROWSFT_CONCURRENT_JOBS", "2")
    spec, _ = finished(workshop, tmp_path, "bert", ["method=lora"])
    before = (spec.folder / "record.json").read_bytes()
    jobs = [*workshop.overrides("bert"), f"store={tmp_path}", "method=lora", "measure=alone", "measure_steps=100000"]
    sweep = started(workshop, jobs)
    said = next(line for line in sweep.stdout if "done already" in line or "training for" in line)
    assert "training for" in said
    (job,) = psutil.Process(sweep.pid).children()
    job.send_signal(signal.SIGKILL)
    out, errors = sweep.communicate(timeout=200)
    assert sweep.returncode == 1 and "killed by signal 9 (SIGKILL): out of memory?" in out, (out, errors)
    assert (spec.folder / "record.json").read_bytes() == before


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("measure=apart", "measure=apart: expected alone, or null to run"),
        ("measure_steps=1", "measure_steps=1: expected"),
    ],
)
def test_wrong_settings_of_a_measurement_are_one_line(workshop, tmp_path, wrong, said):
    with pytest.raises(UserError, match=said):
        settled(workshop, tmp_path, "bert", ["measure=alone", wrong])
