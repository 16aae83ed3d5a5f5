"""`trainer.evaluate_every`: a validation curve that changes nothing of the training it watches."""

import csv

import pytest
import torch

from rowsft.config.compose import compose
from rowsft.config.run_spec import run_spec
from rowsft.config.settings import trainer_settings
from rowsft.errors import UserError
from rowsft.measure.resident import ResidentPeak, left_out
from rowsft.runner.run import run
from rowsft.store import Store
from rowsft.tracking.content import curve
from rowsft.tracking.tracker import NullTracker

pytestmark = pytest.mark.whole

KINDS = [
    ("llama", ["method=row_sft", "method.dropout=0.1"]),
    ("bert", ["method=row_sft", "method.channel=columns", "method.importance=l2"]),
    ("llama", ["method=lora", "method.dropout=0.1", "trainer.gradient_accumulation=2"]),
    ("bert", ["method=full", "trainer=bf16"]),
    ("bert", ["method=lora", "trainer.gradient_checkpointing=true"]),
    ("bert", ["method=head"]),
]


def go(workshop, store, family, overrides, every, **changes):
    given = [*workshop.overrides(family), f"store={store}", "trainer.evaluate=[validation]", *overrides]
    config = compose([*given, f"trainer.evaluate_every={every}"])
    spec = run_spec(config)
    outcome = run(spec, trainer_settings(config), False, say=str)
    assert outcome.state == "done", outcome.message
    return Store(store).get(spec.run_id)


def rows(record):
    with record.file("curve").open() as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize(("family", "overrides"), KINDS, ids=[f"{family} {' '.join(rest)}" for family, rest in KINDS])
def test_the_training_is_the_same_and_its_last_point_is_the_evaluation(workshop, tmp_path, family, overrides):
    plain = go(workshop, tmp_path / "plain", family, overrides, "null")
    record = go(workshop, tmp_path / "watched", family, overrides, 4)
    assert record.id != plain.id
    for name in ("adapter", "predictions"):
        files = sorted(record.file(name).rglob("*.safetensors")) or [record.file(name)]
        others = sorted(plain.file(name).rglob("*.safetensors")) or [plain.file(name)]
        assert [path.read_bytes() for path in files] == [path.read_bytes() for path in others]
    # Exact on a CPU: what evaluating needs is no part of it.
    assert record.result.memory.train.peak_allocated_bytes == plain.result.memory.train.peak_allocated_bytes
    assert record.result.step_seconds.timed_steps == plain.result.step_seconds.timed_steps == 5

    watched = rows(record)
    metric = record.result.primary_metric
    columns = [name for name in watched[0] if name.startswith("validation_")]
    assert f"validation_{metric}" in columns
    assert [row["step"] for row in watched if row[columns[0]]] == ["4", "6"]
    for name in columns:
        # The csv keeps floats whole.
        assert float(watched[-1][name]) == record.result.metrics["validation"][name.removeprefix("validation_")]
    assert [{key: row[key] for key in rows(plain)[0]} for row in watched] == rows(plain)
    assert record.result.validation_seconds > 0 and plain.result.validation_seconds is None
    # On dashboards.
    points = dict(curve(record.result, record.folder))
    assert f"validation/{metric}" in points[4] and f"validation/{metric}" not in points[5]


def test_a_resumed_run_has_the_whole_validation_curve(workshop, tmp_path, monkeypatch):
    overrides = ["method=lora", "trainer.checkpoint_steps=2", "trainer.logging_steps=3"]
    whole = go(workshop, tmp_path / "whole", "bert", overrides, 2)

    def stop(self, at, values):
        if at >= 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(NullTracker, "log", stop)
        go(workshop, tmp_path / "pieces", "bert", overrides, 2)
    pieces = go(workshop, tmp_path / "pieces", "bert", overrides, 2)
    assert pieces.result.resumed.times == 1
    assert rows(pieces) == rows(whole) and [row["step"] for row in rows(whole)] == ["2", "3", "4", "6"]


def test_a_task_without_a_validation_split_is_refused(workshop, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "rowsft.tasks.text_classification.TextClassification.splits", lambda self: {"train": [], "test": []}
    )
    with pytest.raises(UserError, match="evaluate_every=2: task .* has no validation split"):
        go(workshop, tmp_path, "bert", ["method=lora"], 2)
    with pytest.raises(UserError, match=r"trainer\.evaluate_every=0"):
        go(workshop, tmp_path, "bert", ["method=lora"], 0)


def test_memory_of_work_that_is_left_out_is_not_in_the_resident_peak():
    def touched(mebibytes):
        return torch.ones(mebibytes * 2**18)

    with ResidentPeak() as small:
        touched(50)
    with ResidentPeak() as peak:
        touched(50)
        with left_out():
            touched(300)
    assert peak.method == small.method
    assert peak.peak_bytes < small.peak_bytes + 100 * 2**20
