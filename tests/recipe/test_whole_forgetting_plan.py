"""A plan of what measuring a general text takes, held against the run."""

import random

import pytest
from planned_runs import without_weights
from refusals import refusal

from rowsft import measure
from rowsft.config.compose import compose
from rowsft.config.run_spec import run_spec
from rowsft.config.settings import trainer_settings
from rowsft.plan import plan
from rowsft.plan.advice import memory_suggestions
from rowsft.plan.description import as_json, of_plan
from rowsft.plan.fit import Card
from rowsft.runner import forgetting
from rowsft.runner.run import run

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Windows of 24 tokens, the first behind BOS: 23 + 12 n tokens and 5 that are left make 4 batches of 4."""
    draw = random.Random(1)
    path = tmp_path_factory.mktemp("general") / "general.txt"
    path.write_text(" ".join(f"w{draw.randrange(40)}" for _ in range(23 + 14 * 12 + 5)) + "\n")
    return path


def given(workshop, text, *overrides):
    asked = [f"trainer.forgetting.path={text}", "trainer.forgetting.max_length=24", "trainer.forgetting.batch_size=4"]
    return [*workshop.overrides("llama"), "trainer.steps=2", "trainer.evaluate=[validation]", *asked, *overrides]


def planned_and_measured(workshop, text, monkeypatch, *overrides):
    """The plan from a configuration, and the peak of the run's two passes."""
    config = compose(given(workshop, text, *overrides))
    bare = compose(given(workshop, text, *overrides, f"model.source={without_weights(workshop, 'llama')}"))
    planned = plan(bare, trainer_settings(bare))
    peaks, kept = [], []
    really = forgetting.measure

    def measured(job):
        log = measure.MemoryLog(job.device)
        optimizer = None if job.trainer is None else job.trainer.optimizer
        measure.probe(log, "evaluate", lambda: really(job), job.device, job.model, optimizer)
        peaks.append(log["evaluate"].peak_allocated_bytes)
        folder = job.attempt.path / ".originals.tmp"
        kept.append(sum(file.stat().st_size for file in folder.glob("*")) if folder.exists() else 0)

    monkeypatch.setattr(forgetting, "measure", measured)
    outcome = run(run_spec(config), trainer_settings(config), rerun=True, say=str)
    assert outcome.state == "done", outcome.message
    return planned, peaks[0], kept[0]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "overrides",
    [
        ["method=none"],
        ["method=row_sft", "method.importance=l2"],
        ["method=lora"],
        ["method=pissa"],
        ["method=full"],
        ["method=full", "model.dtype=bfloat16"],
    ],
    ids=" ".join,
)
def test_the_planned_peak_and_disk_space_are_those_of_the_run(workshop, text, monkeypatch, overrides):
    planned, measured, kept = planned_and_measured(workshop, text, monkeypatch, *overrides)
    # On a model of this size a mask, or the last window, is a part of it.
    assert planned.forgetting.peak_bytes == pytest.approx(measured, rel=0.07)
    # A file's header comes on top.
    assert planned.forgetting.disk_bytes <= kept <= planned.forgetting.disk_bytes + 2 * 8192
    assert (kept > 0) == ("method=full" in overrides)


def test_a_plan_names_it_and_what_to_lower(workshop, text):
    def made(*overrides):
        config = compose(given(workshop, text, *overrides))
        return plan(config, trainer_settings(config)), config

    small, _ = made("method=lora")
    large, config = made("method=full", "trainer.forgetting.batch_size=64", "trainer.eval_batch_size=1")
    assert large.demand == large.demands["forgetting"] and small.forgetting.disk_bytes == 0
    assert as_json(large)["forgetting_peak_bytes"] == large.forgetting.peak_bytes
    assert as_json(large)["forgetting_disk_bytes"] == 2 * 4 * large.trainable.total()
    shown = "\n".join(str(block) for block in of_plan(large).blocks)
    assert "64 windows of 24 tokens at a time" in shown and "MiB for trainer.forgetting" in shown

    def again(changes):
        return plan(config, trainer_settings(config), changes)

    first = memory_suggestions(large, again, Card("tiny", large.demand.card_bytes - 1))[0]
    assert first.startswith("trainer.forgetting.batch_size=1: needs")
    off, _ = made("trainer.forgetting.path=null")
    assert off.forgetting is None and "forgetting" not in off.demands


def test_what_a_run_refuses_without_the_text_a_plan_refuses(workshop, text):
    def said(*overrides):
        config = compose([*overrides, f"trainer.forgetting.path={text}"])
        return refusal(lambda: plan(config, trainer_settings(config)))

    assert "measured on causal language models" in said(*workshop.overrides("bert"))
    short = "trainer.forgetting.max_length=24"
    cast = said(*workshop.overrides("llama"), "method=dora", "trainer=bf16", short)
    assert "method=dora cannot be planned under trainer.autocast=bf16" in cast
    long = said(*workshop.overrides("llama"), "trainer.forgetting.max_length=65")
    assert "trainer.forgetting.max_length=65: the model has 64 positions" in long
