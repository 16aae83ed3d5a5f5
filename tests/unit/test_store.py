"""The store's bookkeeping: identity, attempts, states, damaged records. Races, full disks: test_store_processes.py."""

import csv
import hashlib
import json
import logging
import subprocess
import sys

import pytest
import yaml

from rowsft.errors import UserError
from rowsft.record import Error
from rowsft.store import RESULTS_VERSION, SCHEMA_VERSION, Store, identity, run_id


def config(**changes):
    base = {
        "seed": 1,
        "method": {"_target_": "baselines.lora.LoRA", "name": "lora", "r": 8},
        "trainer": {"learning_rate": 1e-4, "weight_decay": 0.0},
        "experiment_name": "quick",
        "store": "runs",
        "tracker": {"name": "none"},
    }
    return {**base, **changes}


def read(store, run):
    return json.loads((store.root / run / "record.json").read_text())


def finished(store, **changes):
    with store.open(config(**changes)) as run:
        attempt = run.begin()
        attempt.write_predictions([{"id": "a", "correct": 1}])
        attempt.finish("done", metrics={"test": {"accuracy": 0.5}})
        return run.id


def test_id_is_the_hash_of_the_canonical_json_of_the_identity():
    text = (
        f'{{"method":{{"_target_":"baselines.lora.LoRA","name":"lora","r":8}},"results_version":{RESULTS_VERSION},'
        '"seed":1,"trainer":{"learning_rate":0.0001,"weight_decay":0}}'
    )
    assert run_id(config()) == hashlib.sha256(text.encode()).hexdigest()[:12]


@pytest.mark.parametrize(
    "changes",
    [
        {"store": "elsewhere"},
        {"experiment_name": "other"},
        {"tracker": {"name": "wandb"}},
        {"demonstration": {"is": True}},
        {"trainer": {"weight_decay": 0, "learning_rate": 0.0001}},
        {"trainer": {"learning_rate": 1e-4, "weight_decay": 0.0, "cache_dir": "/x"}},
    ],
)
def test_presentation_does_not_change_the_id(changes):
    assert run_id(config(**changes)) == run_id(config())


@pytest.mark.parametrize(
    "changes", [{"seed": 2}, {"seed": True}, {"seed": "1"}, {"method": {"name": "lora", "r": 16}}, {"debug": None}]
)
def test_anything_else_changes_the_id(changes):
    assert run_id(config(**changes)) != run_id(config())


@pytest.mark.parametrize("value, said", [(float("nan"), "trainer.x=nan"), ({1}, r"trainer\.x=\{1\} is a set")])
def test_a_value_that_json_cannot_hold_is_named(value, said):
    with pytest.raises(UserError, match=said):
        identity({"trainer": {"x": value}})


def test_a_run_goes_from_pending_to_done_with_its_files(tmp_path):
    store = Store(tmp_path / "deep" / "runs")
    with store.open(config()) as run:
        assert read(store, run.id)["state"] == "pending" and run.record.result is None
        attempt = run.begin(environment={"threads": 2})
        assert read(store, run.id)["state"] == "running"
        attempt.update(seconds={"load": 1.5})
        attempt.update(seconds={"train": 2.5}, memory={"select": None, "train": {"peak_allocated_bytes": 7}})
        attempt.write_predictions([{"id": "a", "text": "né"}, {"id": "b", "score": float("inf")}])
        attempt.write_curve([{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25, "grad_norm": 1.0}])
        attempt.write_folder("adapter", lambda folder: (folder / "weights.bin").write_bytes(b"\x00\x01"))
        attempt.finish("done", metrics={"test": {"accuracy": 0.5}}, train_loss_final=float("nan"))
    raw = read(store, run.id)
    assert raw["schema_version"] == SCHEMA_VERSION and raw["identity"] == identity(config())
    assert yaml.safe_load((run.path / "config.yaml").read_text()) == config()
    result = store.get(run.id).result
    assert result.seconds.load == 1.5 and result.seconds.train == 2.5 and result.seconds.total >= 0
    assert result.memory.train.peak_allocated_bytes == 7 and result.memory.select.peak_allocated_bytes is None
    assert result.environment.threads == 2 and result.error is None and result.ended_at
    assert result.train_loss_final is None and result.non_finite == ["train_loss_final"]
    predictions = store.get(run.id).file("predictions")
    assert predictions == run.path / "attempt-1" / "predictions.jsonl"
    assert hashlib.sha256(predictions.read_bytes()).hexdigest() == result.files["predictions"].sha256
    assert [json.loads(line) for line in predictions.read_text().splitlines()] == [
        {"id": "a", "text": "né"},
        {"id": "b", "score": None},
    ]
    with store.get(run.id).file("curve").open() as stream:
        assert list(csv.DictReader(stream))[1] == {"step": "2", "loss": "0.25", "grad_norm": "1.0"}
    assert (run.path / "attempt-1" / "adapter" / "weights.bin").read_bytes() == b"\x00\x01"
    assert [path.name for path in run.path.rglob(".*")] == [".claim-1"]


def test_a_rerun_keeps_the_earlier_attempt_and_the_latest_done_counts(tmp_path):
    store = Store(tmp_path)
    run = finished(store)
    before = (tmp_path / run / "attempt-1" / "predictions.jsonl").read_bytes()
    with store.open(config()) as folder:
        attempt = folder.begin()
        attempt.write_predictions([{"id": "a", "correct": 0}])
        attempt.finish("failed", error=Error(type="X", message="y", phase="train"))
    record = store.get(run)
    assert [a.state for a in record.attempts] == ["done", "failed"] and record.state == "failed"
    assert record.result.attempt == 1 and store.is_done(run)
    assert (tmp_path / run / "attempt-1" / "predictions.jsonl").read_bytes() == before
    with store.open(config()) as folder:
        folder.begin().finish("done", metrics={"test": {"accuracy": 0.75}})
    assert store.get(run).result.metrics["test"]["accuracy"] == 0.75


@pytest.mark.parametrize(
    "error, state",
    [
        (KeyboardInterrupt(), "interrupted"),
        (MemoryError("x"), "oom"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA"), "oom"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "oom"),
        (RuntimeError("unable to mmap 272698936 bytes from file <m>: Cannot allocate memory (12)"), "oom"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"), "oom"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "oom"),
        (ValueError("shape"), "failed"),
    ],
)
def test_an_exception_that_leaves_the_block_closes_the_attempt(tmp_path, error, state):
    store = Store(tmp_path)
    with pytest.raises(type(error)), store.open(config()) as run:
        run.begin()
        raise error
    latest = store.get(run.id).latest
    assert latest.state == state and latest.error.type == type(error).__name__
    assert "test_store.py" in latest.error.traceback


def test_a_folder_half_filled_leaves_nothing_behind(tmp_path):
    def fill(folder):
        (folder / "half").write_text("x")
        raise ValueError("no")

    with pytest.raises(ValueError), Store(tmp_path).open(config()) as run:
        run.begin().write_folder("adapter", fill)
    assert [path.name for path in (run.path / "attempt-1").iterdir()] == []


def test_a_run_may_serve_two_experiments_without_touching_results(tmp_path):
    store = Store(tmp_path)
    run = finished(store, demonstration={"is": True})
    before = store.get(run).attempts
    store.open(config(experiment_name="paper", fairness={"dropout": "0 everywhere"})).close()
    store.add_experiment(run, "third")
    record = store.get(run)
    assert record.experiments == ["quick", "paper", "third"] and record.attempts == before
    assert record.experiment_notes["quick"] == {"demonstration": {"is": True}}
    assert record.experiment_notes["paper"] == {"fairness": {"dropout": "0 everywhere"}}
    finished(store, seed=2)
    assert [found.id for found in store.runs("paper")] == [run] and len(store.runs()) == 2
    assert store.experiments() == ["paper", "quick", "third"]


def test_get_by_prefix(tmp_path):
    store = Store(tmp_path)
    runs = [finished(store, seed=seed) for seed in range(20)]
    assert store.get(runs[3][:11]).id == runs[3]
    shared = next(run[0] for run in runs if sum(other[0] == run[0] for other in runs) > 1)
    with pytest.raises(UserError, match="matches"):
        store.get(shared)
    for absent in ("zzz", ""):
        with pytest.raises(UserError, match="rowsft runs"):
            store.get(absent)


@pytest.mark.parametrize("damage", [b"", b'{"schema_version": 1, "id"', b"[]", b'{"schema_version": 1}', b"\xff\xfe"])
def test_a_damaged_record_is_skipped_in_lists_and_set_aside_for_a_new_run(tmp_path, caplog, damage):
    store = Store(tmp_path)
    run, other = finished(store), finished(store, seed=2)
    path = tmp_path / run / "record.json"
    path.write_bytes(damage)
    with caplog.at_level(logging.WARNING):
        assert [record.id for record in store.runs()] == [other]
    assert [str(path) in m and "run it again" in m and "\n" not in m for m in caplog.messages] == [True]
    with pytest.raises(UserError, match="run it again"):
        store.get(run)
    assert not store.is_done(run)
    with store.open(config()) as folder:
        attempt = folder.begin()
        assert attempt.number == 2
        attempt.finish("done", metrics={})
    assert path.with_name("record.json.corrupt-1").read_bytes() == damage
    assert (tmp_path / run / "attempt-1" / "predictions.jsonl").exists() and store.get(run).state == "done"


def test_a_newer_schema_is_refused_and_left_alone(tmp_path, caplog):
    store = Store(tmp_path)
    run = finished(store)
    path = tmp_path / run / "record.json"
    newer = json.dumps({**json.loads(path.read_text()), "schema_version": SCHEMA_VERSION + 1})
    path.write_text(newer)
    for attempt in (lambda: store.get(run), lambda: store.open(config())):
        with pytest.raises(UserError, match=f"schema_version {SCHEMA_VERSION + 1}.*upgrade"):
            attempt()
    assert path.read_text() == newer and store.runs() == [] and "skipped" in caplog.text


def test_misuse_of_attempts_is_refused(tmp_path):
    with Store(tmp_path).open(config()) as run:
        attempt = run.begin()
        with pytest.raises(RuntimeError, match="still open"):
            run.begin()
        with pytest.raises(ValueError, match="expected one of"):
            attempt.finish("running")
        with pytest.raises(TypeError, match=r"metrics\.x is a object"):
            attempt.update(metrics={"x": object()})
        attempt.finish("done")
        with pytest.raises(RuntimeError, match="already finished"):
            attempt.finish("done")


def test_an_empty_or_absent_store_lists_nothing(tmp_path):
    assert Store(tmp_path / "none").runs() == [] and not (tmp_path / "none").exists()
    assert Store(tmp_path).runs() == []


def test_torch_is_never_imported():
    code = "import sys, rowsft.store; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
