"""A run that was stopped goes on from its checkpoint to the very same end, and its record says so."""

import csv
import json
import shutil
from importlib.util import find_spec

import pytest
import torch

from rowsft.config.compose import compose
from rowsft.config.run_spec import run_spec
from rowsft.config.settings import trainer_settings
from rowsft.runner.run import run
from rowsft.store import Store
from rowsft.store.checkpoints import of_run
from rowsft.tracking.tracker import NullTracker

STEPS = 8
# What draws random numbers in training does so here: the model's own dropout (BERT), the adapters'.
KINDS = [
    ("llama", ["method=row_sft", "method.dropout=0.1"]),
    ("llama", ["method=row_sft", "method.channel=columns", "method.importance=l2"]),
    ("llama", ["method=row_sft", "method.channel=neurons", "budget.rows=2", "trainer.gradient_accumulation=2"]),
    ("bert", ["method=row_sft", "trainer.warm_head=3"]),
    ("bert", ["method=row_sft", "method.importance=zo_taylor", "trainer.logging_steps=3"]),
    ("llama", ["method=lora", "method.dropout=0.1", "trainer.gradient_accumulation=3"]),
    ("bert", ["method=lora", "trainer.gradient_checkpointing=true"]),
    ("llama", ["method=dora", "trainer=bf16"]),
    ("bert", ["method=shira"]),
    ("bert", ["method=pissa", "method.dropout=0.1"]),
    ("llama", ["method=cla"]),
    ("bert", ["method=lora_plus", "method.dropout=0.1"]),
    ("bert", ["method=adalora", "method.r=3", "method.delta_t=2", "method.dropout=0.1"]),
    ("llama", ["method=lisa", "method.blocks=1", "method.period=3"]),
    ("bert", ["method=full"]),
    ("bert", ["method=head", "trainer.scheduler=step_epoch"]),
]


def settled(workshop, store, family, overrides):
    given = [*workshop.overrides(family), f"store={store}", f"trainer.steps={STEPS}", *overrides]
    config = compose([*given, "trainer.checkpoint_steps=2", "trainer.memory_probe_steps=0"])
    return run_spec(config), trainer_settings(config)


def go(spec, settings, **changes):
    said = []
    outcome = run(spec, settings, changes.pop("rerun", False), say=said.append)
    return outcome, said


def stop(step, spec, settings, monkeypatch):
    """Run until this step, or a later one, is logged, and stop the process there."""

    def log(self, at, values):
        if at >= step:
            raise KeyboardInterrupt("stopped by a test")

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(NullTracker, "log", log)
        go(spec, settings)


def kept(record):
    """What a run leaves, byte for byte, beside the clocks."""
    adapter = record.file("adapter")
    files = {path.name: path.read_bytes() for path in sorted(adapter.rglob("*.safetensors"))}
    return files, record.file("predictions").read_bytes(), record.file("curve").read_bytes()


@pytest.mark.parametrize(("family", "overrides"), KINDS, ids=[f"{family} {' '.join(rest)}" for family, rest in KINDS])
def test_a_stopped_run_ends_as_an_undisturbed_one(workshop, tmp_path, monkeypatch, family, overrides):
    check_ends_as_undisturbed(workshop, tmp_path, monkeypatch, family, overrides)


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes: make quant-test")
def test_a_stopped_run_with_an_8bit_state_ends_as_an_undisturbed_one(workshop, tmp_path, monkeypatch):
    """The output layer alone is large enough for one."""
    overrides = ["method=full", "trainer.optimizer=adamw_8bit"]
    check_ends_as_undisturbed(workshop, tmp_path, monkeypatch, "llama", overrides)
    (record,) = Store(tmp_path / "whole").runs()
    assert record.result.optimization.optimizer == "AdamW8bit"


def check_ends_as_undisturbed(workshop, tmp_path, monkeypatch, family, overrides) -> None:
    spec, settings = settled(workshop, tmp_path / "whole", family, overrides)
    assert go(spec, settings)[0].state == "done"
    whole = Store(tmp_path / "whole").get(spec.run_id)

    spec, settings = settled(workshop, tmp_path / "pieces", family, overrides)
    for last_step in (4, 7):
        stop(last_step, spec, settings, monkeypatch)
    record = Store(tmp_path / "pieces").get(spec.run_id)
    assert [attempt.state for attempt in record.attempts] == ["interrupted"] * 2
    (checkpoint,) = of_run(record.folder)
    outcome, said = go(spec, settings)
    assert outcome.state == "done", outcome.message
    pieces = Store(tmp_path / "pieces").get(spec.run_id)
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    assert any(f"going on from step {step} of attempt 2" in text for text in said)

    assert kept(pieces) == kept(whole)
    assert of_run(pieces.folder) == []
    there, here = whole.result, pieces.result
    assert (here.resumed.attempt, here.resumed.step, here.resumed.times) == (2, step, 2)
    assert there.resumed.times is None
    assert here.metrics == there.metrics
    same = ("steps", "train_tokens", "train_examples", "train_loss_final", "parameters", "resolved", "inputs")
    assert {name: getattr(here, name) for name in same} == {name: getattr(there, name) for name in same}
    assert here.warm_head == there.warm_head
    # One step of warm-up in each of the three pieces is left out.
    assert there.step_seconds.timed_steps == STEPS - 1
    assert here.step_seconds.timed_steps == STEPS - 3
    assert here.checkpoint_seconds > 0
    assert here.seconds.total > here.seconds.train > here.checkpoint_seconds


def test_seconds_are_those_of_all_pieces_up_to_the_checkpoints(workshop, tmp_path, monkeypatch):
    spec, settings = settled(workshop, tmp_path, "bert", ["method=full"])
    stop(6, spec, settings, monkeypatch)
    (folder,) = of_run(spec.folder)
    held = json.loads((folder / "run_state.json").read_text())
    assert held["step"] == 4
    go(spec, settings)
    record = Store(tmp_path).get(spec.run_id)
    first, second = record.attempts
    for phase in ("load", "train", "total"):
        assert getattr(second.seconds, phase) > held["seconds"][phase]
    # What the first process did after its checkpoint is in its own record alone.
    assert first.seconds.train > held["seconds"]["train"]
    with (record.folder / "attempt-2" / "curve.csv").open() as lines:
        assert [int(row["step"]) for row in csv.DictReader(lines)] == list(range(1, STEPS + 1))


def test_a_checkpoint_has_the_size_of_what_is_trained(workshop, tmp_path, monkeypatch):
    """Twice the trained parameters for AdamW's moments and once for themselves; nothing of the frozen base."""
    spec, settings = settled(workshop, tmp_path, "llama", ["method=row_sft"])
    stop(3, spec, settings, monkeypatch)
    (folder,) = of_run(spec.folder)
    record = Store(tmp_path).get(spec.run_id)
    trained = 4 * record.latest.parameters.total_trainable
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    layers = len(record.latest.resolved["target_modules"])
    assert trained <= sizes["trained.safetensors"] < trained + 400 * layers
    assert 2 * trained <= sizes["optimizer.pt"] < 2 * trained + 2000 * layers
    assert trained < 0.1 * 4 * record.latest.parameters.base


def test_a_choice_of_other_rows_is_refused(workshop, tmp_path, monkeypatch):
    spec, settings = settled(workshop, tmp_path, "llama", ["method=row_sft"])
    stop(3, spec, settings, monkeypatch)
    (folder,) = of_run(spec.folder)
    held = json.loads((folder / "run_state.json").read_text())
    (folder / "run_state.json").write_text(json.dumps({**held, "digest": "0" * 64}))
    with pytest.raises(ValueError, match="would train other rows or parameters"):
        go(spec, settings)
    outcome, said = go(spec, settings)
    assert outcome.state == "done" and not any("going on" in text for text in said)


@pytest.mark.parametrize("damage", ["cut", "gone", "empty"])
def test_a_damaged_checkpoint_is_not_taken(workshop, tmp_path, monkeypatch, damage, capsys):
    spec, settings = settled(workshop, tmp_path, "bert", ["method=lora"])
    stop(3, spec, settings, monkeypatch)
    (folder,) = of_run(spec.folder)
    if damage == "cut":
        content = (folder / "optimizer.pt").read_bytes()
        (folder / "optimizer.pt").write_bytes(content[:-9])
    elif damage == "gone":
        (folder / "trained.safetensors").unlink()
    else:
        (folder / "run_state.json").write_text("")
    outcome, said = go(spec, settings)
    assert outcome.state == "done"
    assert not any("going on" in text for text in said)
    assert "is damaged" in capsys.readouterr().err
    assert Store(tmp_path).get(spec.run_id).result.resumed.times is None


def test_a_full_disk_costs_the_checkpoint_and_not_the_run(workshop, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rowsft.runner.checkpoints.save_file", full)
    spec, settings = settled(workshop, tmp_path, "bert", ["method=lora"])
    outcome, said = go(spec, settings)
    assert outcome.state == "done"
    assert sum("no checkpoint could be written" in text and "No space left" in text for text in said) == STEPS // 2 - 1
    assert of_run(spec.folder) == []


def test_what_failed_goes_on_where_it_is_asked_to(workshop, tmp_path, monkeypatch):
    """An error after the last step: under resume_errored the run evaluates what was trained and trains no more."""
    spec, settings = settled(workshop, tmp_path, "bert", ["method=lora"])
    with monkeypatch.context() as patch:
        patch.setattr("rowsft.runner.evaluation.evaluate_examples", lambda *_: torch.empty(1) @ torch.empty(2))
        assert go(spec, settings)[0].state == "failed"
    shutil.copytree(tmp_path, tmp_path.with_name("other"))

    left, settings = settled(workshop, tmp_path, "bert", ["method=lora", "retry=interrupted"])
    outcome, _ = go(left, settings)
    assert (outcome.state, len(Store(tmp_path).get(spec.run_id).attempts)) == ("failed", 1)
    assert "retry=interrupted; retry=all tries it again" in outcome.message

    spec, settings = settled(workshop, tmp_path, "bert", ["method=lora", "resume_errored=true"])
    outcome, said = go(spec, settings)
    assert outcome.state == "done" and any(f"going on from step {STEPS}" in text for text in said)
    resumed = Store(tmp_path).get(spec.run_id)

    spec, settings = settled(workshop, tmp_path.with_name("other"), "bert", ["method=lora"])
    outcome, said = go(spec, settings)
    assert outcome.state == "done" and not any("going on" in text for text in said)
    assert kept(Store(tmp_path.with_name("other")).get(spec.run_id)) == kept(resumed)


def test_checkpoints_change_no_identity(workshop, tmp_path):
    spec, _ = settled(workshop, tmp_path, "bert", ["method=lora"])
    changed = ["trainer.checkpoint_steps=null", "trainer.checkpoint_minutes=1", "retry=oom", "resume_errored=true"]
    other, _ = settled(workshop, tmp_path, "bert", ["method=lora", *changed, "restart_errored=false"])
    assert other.run_id == spec.run_id
