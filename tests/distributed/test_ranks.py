"""Two gloo processes train what one process trains at the same global batch, for every strategy; checkpoints go on
with another number of processes.

Prompts and responses differ in length, so that the processes have unequal numbers of labelled tokens.
"""

import json
import subprocess
from contextlib import suppress

import pytest
from runs_of_ranks import (
    assert_same_training,
    curve,
    go,
    group_of_one,
    in_processes,
    predictions,
    record_of,
    weights,
)

from rowsft.config.compose import compose
from rowsft.config.run_spec import run_spec
from rowsft.config.settings import trainer_settings
from rowsft.runner.ranks import ALONE
from rowsft.runner.run import run
from rowsft.store import Store

STEPS = 4
# The rest of the methods is in every_method.py, for `make distributed-test`.
KINDS = {
    "rows": ("llama", ["method=row_sft", "trainer.gradient_accumulation=2", "trainer.memory_probe_steps=1"]),
    "full": ("llama", ["method=full", "trainer.gradient_accumulation=2", "trainer.max_grad_norm=0"]),
    "lora": ("bert", ["method=lora", "trainer.evaluate_every=1"]),
}
STRATEGIES = ("ddp", "fsdp")
DROPOUT = ("llama", ["method=lora", "method.dropout=0.1", "trainer=ddp"])


def overrides(workshop, store, kind, *more) -> list[str]:
    family, own = kind
    settings = [f"trainer.steps={STEPS}", "trainer.memory_probe_steps=0", "trainer.checkpoint_steps=2"]
    # A run that a test stops counts as failed.
    settings += ["resume_errored=true", f"store={store}"]
    # The group trainer comes first: its keys are then set.
    return [*(m for m in more if m.startswith("trainer=")), *workshop.overrides(family), *settings, *own]


@pytest.fixture(scope="module")
def store(workshop, tmp_path_factory):
    """Stores with all runs: one/, two/; and what was stopped, dropped/, and goes on elsewhere."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "saved").mkdir()
    with pytest.MonkeyPatch.context() as patch, group_of_one(patch) as one:
        go(overrides(workshop, folder / "one_to_two", KINDS["full"], "trainer=fsdp"), one, stop=3)
    runs = [
        {"overrides": overrides(workshop, folder / "two", kind, f"trainer={strategy}")}
        for kind in KINDS.values()
        for strategy in STRATEGIES
    ]
    runs += [
        {"overrides": overrides(workshop, folder / "whole", DROPOUT)},
        {"overrides": overrides(workshop, folder / "pieces", DROPOUT), "stop": 3},
        {"overrides": overrides(workshop, folder / "pieces", DROPOUT)},
        {"overrides": overrides(workshop, folder / "one_to_two", KINDS["full"], "trainer=fsdp")},
        {"overrides": overrides(workshop, folder / "two_to_one", KINDS["full"], "trainer=fsdp"), "stop": 3},
        {"overrides": overrides(workshop, folder / "two_to_one", KINDS["lora"], "trainer=ddp"), "stop": 3},
    ]
    in_processes(2, {"runs": runs, "saving": str(folder / "saved")}, folder)
    for kind in KINDS.values():
        assert go(overrides(workshop, folder / "one", kind), ALONE).state == "done"
    return folder


def of(workshop, store, name, kind, *more):
    return record_of(store / name, overrides(workshop, store / name, kind, *more))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_what_one_does(workshop, store, kind, strategy):
    record = of(workshop, store, "two", KINDS[kind], f"trainer={strategy}")
    assert record.state == "done"
    assert_same_training(record, of(workshop, store, "one", KINDS[kind]))
    ranks = record.result.ranks
    assert (ranks.strategy, ranks.processes, ranks.backend) == (strategy, 2, "gloo")
    assert (ranks.wrapped == "DistributedDataParallel") is (strategy == "ddp")
    assert ranks.wrapped.startswith("FSDP") is (strategy == "fsdp")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_memory_is_that_of_each_process_and_of_all(workshop, store, strategy):
    result = of(workshop, store, "two", KINDS["rows"], f"trainer={strategy}").result
    peaks = [one.memory.train.peak_allocated_bytes for one in result.ranks.each]
    assert len(peaks) == 2 and all(peaks)
    assert result.memory.train.peak_allocated_bytes == max(peaks)
    assert result.ranks.train_peak_allocated_bytes == sum(peaks)
    resident = [one.memory.train.resident_peak_bytes for one in result.ranks.each]
    assert result.ranks.train_resident_peak_bytes == sum(resident) and all(resident)
    # Parts are told apart in one process alone.
    assert not result.memory.ledger


def test_a_sharded_adapter_is_saved_with_the_parts_of_every_process(store):
    """FULL_STATE_DICT with adapter_only saves that of rank 0 alone (huggingface/accelerate#4206)."""
    seen = json.loads((store / "saved" / "seen.json").read_text())
    assert len(seen["before"]) == 2 * 2 * 2
    for name, values in seen["before"].items():
        assert {value for row in values for value in row} == {1.0, 2.0}, name
        assert seen["after"][name] == values
        assert [own[name] for own in seen["own"]] == [[1.0], [2.0]]


def test_a_run_goes_on_in_as_many_processes_bit_for_bit(workshop, store):
    """Dropout draws from the random streams of each process, which are kept too."""
    whole, pieces = (of(workshop, store, name, DROPOUT) for name in ("whole", "pieces"))
    assert pieces.result.resumed.step == 2 and len(pieces.attempts) == 2
    assert curve(pieces) == curve(whole) and predictions(pieces) == predictions(whole)
    ours, theirs = weights(pieces), weights(whole)
    assert ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)
    assert pieces.result.train_tokens == whole.result.train_tokens
    masked = [curve(of(workshop, store, "two", KINDS["lora"], "trainer=ddp")), curve(whole)]
    assert masked[0] != masked[1]


def test_a_run_of_one_process_goes_on_in_two(workshop, store):
    record = of(workshop, store, "one_to_two", KINDS["full"], "trainer=fsdp")
    assert [attempt.state for attempt in record.attempts] == ["failed", "done"]
    assert (record.attempts[0].ranks.processes, record.result.ranks.processes) == (None, 2)
    assert record.result.resumed.step == 2
    assert_same_training(record, of(workshop, store, "one", KINDS["full"]))


@pytest.mark.parametrize(("kind", "strategy"), [("full", "fsdp"), ("lora", "ddp")])
def test_a_run_of_two_processes_goes_on_in_one(workshop, store, monkeypatch, kind, strategy):
    settings = overrides(workshop, store / "two_to_one", KINDS[kind], f"trainer={strategy}")
    with group_of_one(monkeypatch) as one:
        assert go(settings, one).state == "done"
    record = record_of(store / "two_to_one", settings)
    assert record.result.resumed.step == 2 and record.result.ranks.processes == 1
    assert_same_training(record, of(workshop, store, "one", KINDS[kind]))


def test_a_full_disk_costs_checkpoints_and_no_training(workshop, store, small_disk, monkeypatch):
    """As in one process. After the first checkpoint that fails there is room again."""
    subprocess.run(["mount", "-o", "remount,size=1m", small_disk], check=True)
    filler = small_disk / "filler"
    config = compose(overrides(workshop, small_disk / "runs", KINDS["lora"], "trainer=ddp"))
    said = []

    def say(text):
        said.append(text)
        if "training for" in text:
            with suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
        elif "no checkpoint" in text:
            filler.unlink(missing_ok=True)

    with group_of_one(monkeypatch) as one:
        outcome = run(run_spec(config), trainer_settings(config), False, say, None, one)
    assert outcome.state == "done" and sum("no checkpoint could be written" in text for text in said) == 1, said
    (record,) = Store(small_disk / "runs").runs()
    assert_same_training(record, of(workshop, store, "one", KINDS["lora"]))


def test_only_rank_0_writes_into_the_store(store):
    for record in Store(store / "two").runs():
        names = {path.name for path in (record.folder / "attempt-1").iterdir()}
        assert names == {"adapter", "curve.csv", "predictions.jsonl"}, record.folder
