"""Language modelling of a text file, from the plan to the report's numbers."""

import json
import random

import pytest
import torch
from planned_runs import without_weights
from tiny_workshop import WORDS

from rowsft.config.compose import compose
from rowsft.config.run_spec import run_spec
from rowsft.config.settings import trainer_settings
from rowsft.plan import plan
from rowsft.plan.lengths import of_data
from rowsft.report.predictions import difference, scored
from rowsft.runner.run import run
from rowsft.store import Store


@pytest.fixture
def given(workshop, tmp_path):
    draw = random.Random(0)
    for split, lines in (("train", 400), ("valid", 60), ("test", 200)):
        text = "".join(" ".join(draw.choice(WORDS[:9]) for _ in range(9)) + "\n" for _ in range(lines))
        (tmp_path / f"{split}.txt").write_text(text)
    overrides = workshop.overrides("llama")
    kept = [text for text in overrides if not text.startswith(("task=", "task.data"))]
    return [*kept, "task=wikitext2", f"task.data.path={tmp_path}", f"store={tmp_path / 'runs'}"]


def test_text_files_are_trained_on_evaluated_and_compared(workshop, tmp_path, given):
    for method in ("none", "row_sft"):
        done = workshop.rowsft(
            "run", *given, f"method={method}", "trainer.evaluate_every=3", "trainer.learning_rate=0.03"
        )
        assert done.returncode == 0, done.stderr
    runs = Store(tmp_path / "runs").runs()
    sides = {}
    for record in runs:
        rows = [json.loads(line) for line in record.file("predictions").read_text().splitlines()]
        test = [row for row in rows if row["split"] == "test"]
        assert sum(row["tokens"] for row in test) == sum(row["words"] for row in test) == 200 * 9
        metrics = record.result.metrics["test"]
        for name in ("loss", "perplexity", "word_perplexity", "bits_per_byte", "token_accuracy"):
            found = scored(record, "test", name)
            assert found.metric(list(range(len(test)))) == pytest.approx(metrics[name], rel=1e-9), name
        sides[record.config["method"]["name"]] = record
    untouched, tuned = (sides[name].result.metrics["test"]["loss"] for name in ("none", "row_sft"))
    assert tuned < untouched - 0.05
    gap = difference(*({2023: scored(sides[name], "test")} for name in ("row_sft", "none")))
    assert gap.value == pytest.approx(tuned - untouched) and gap.low <= gap.value <= gap.high


@pytest.mark.parametrize(
    "method", [["method=row_sft", "method.importance=l2"], ["method=lora"]], ids=["row_sft", "lora"]
)
def test_the_planned_peaks_are_those_of_the_run(workshop, given, method):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    given = [*given, *method, "trainer.eval_batch_size=4"]
    config = compose(given)
    bare = compose([*given, f"model.source={without_weights(workshop, 'llama')}"])
    planned = plan(bare, trainer_settings(bare), lengths=of_data(config))
    outcome = run(run_spec(config), trainer_settings(config), rerun=True, say=lambda text: None)
    torch.set_num_threads(before)
    assert outcome.state == "done", outcome.message
    memory = json.loads((outcome.folder / "record.json").read_text())["attempts"][-1]["memory"]
    assert planned.peak_bytes == pytest.approx(memory["train"]["peak_allocated_bytes"], rel=1e-3)
    assert planned.evaluation_bytes == pytest.approx(memory["evaluate"]["peak_allocated_bytes"], rel=1e-3)
