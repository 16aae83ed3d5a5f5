"""A plan of the data's own lengths held against the run: short responses keep few logits."""

import json

import pytest

from rowsft import job
from rowsft.compose import compose
from rowsft.identity import plan_run
from rowsft.plan import plan
from rowsft.plan.lengths import of_data
from rowsft.settings import trainer_settings


@pytest.fixture(scope="module")
def short_answers(tmp_path_factory):
    """Every tenth prompt is long enough for 20 tokens; responses have one or two words."""
    file = tmp_path_factory.mktemp("short") / "pairs.jsonl"
    rows = []
    for number in range(60):
        words = ["w7"] * (16 if number % 3 else 4)
        rows.append({"prompt": " ".join([*words, f"w{number}"]), "response": "w1 w2" if number % 2 else "w1"})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_planned_peaks_of_short_responses_are_those_of_the_run(workshop, short_answers, method):
    given = [*workshop.overrides("llama"), f"task.data.path={short_answers}", "task.max_length=64", "trainer.steps=12"]
    given += [f"method={method}", "trainer.evaluate=[train]", "trainer.eval_batch_size=8", "trainer.batch_size=8"]
    config = compose(given)
    lengths = of_data(config)
    assert lengths.source == "data"
    assert (lengths.tokens, lengths.answer) == (lengths.spread["tokens"]["max"], lengths.spread["answer"]["max"])
    assert lengths.tokens < 32
    assert lengths.answer == 3, "two words and the end of the sequence"
    assert lengths.spread["answer"]["p50"] in (2, 3)
    settings = trainer_settings(config)
    planned = plan(config, settings, lengths=lengths)
    assert planned.peak_bytes < 0.9 * plan(config, settings).peak_bytes
    outcome = job.run(plan_run(config), settings, rerun=True, say=lambda text: None)
    assert outcome.state == "done", outcome.message
    record = json.loads((outcome.folder / "record.json").read_text())
    memory = record["attempts"][-1]["memory"]
    assert planned.peak_bytes == pytest.approx(memory["train"]["peak_allocated_bytes"], rel=1e-3)
    assert planned.evaluation_bytes >= 0.999 * memory["evaluate"]["peak_allocated_bytes"]
