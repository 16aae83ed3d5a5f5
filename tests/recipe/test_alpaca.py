"""Instruction tuning by the packaged configurations, on a real file of that form."""

import json

import pytest
from shared_data import shared_data
from tiny import tiny_llama
from tiny_tokenizer import byte_level

from rowsft.config.compose import compose
from rowsft.config.instantiate import instantiated
from rowsft.config.run_spec import run_spec
from rowsft.config.settings import trainer_settings
from rowsft.runner.run import run
from rowsft.store import Store
from rowsft.tasks import Task


@pytest.mark.parametrize("name", ["alpaca", "alpaca_gpt4"])
def test_one_override_runs_it_on_a_file_by_both_templates(workshop, tmp_path, name):
    (file,) = shared_data("alpaca_demo/alpaca_en_demo.json")
    folder = tmp_path / "model"
    tiny_llama(vocab_size=260, max_position_embeddings=512).save_pretrained(folder)
    byte_level().save_pretrained(folder)
    own = ("task=", "task.data.path=", "task.max_length=")
    given = [one for one in workshop.overrides("llama") if not one.startswith(own)]
    given += [f"model.source={folder}", "method.importance=l2", "trainer.memory_probe_steps=0", "trainer.steps=2"]
    given += [f"task={name}", f"task.data.path={file}"]
    config = compose(given)
    splits = instantiated("task", config.task, Task).splits()
    rows = json.loads(file.read_text(encoding="utf-8"))
    examples = {row["id"]: row for part in splits.values() for row in part}
    assert len(examples) == sum(bool(row["output"].strip()) for row in rows)
    assert 2 <= len(splits["test"]) <= 40 and 2 <= len(splits["validation"]) <= 40
    shown = {bool(row["input"].strip()) for row in rows}
    assert shown == {True, False}
    for place, row in enumerate(rows):
        prompt = examples[f"row-{place}"]["prompt"]
        said = f"### Instruction:\n{row['instruction']}\n\n"
        said += f"### Input:\n{row['input']}\n\n" if row["input"].strip() else ""
        assert prompt.endswith(f"\n\n{said}### Response:\n") and prompt.startswith("Below is an instruction that")
        assert ("paired with an input" in prompt) == bool(row["input"].strip())
        assert examples[f"row-{place}"]["response"] == row["output"]
    outcome = run(run_spec(config), trainer_settings(config), rerun=True, say=lambda text: None)
    assert outcome.state == "done", outcome.message
    record = Store(config.store).get(outcome.run_id)
    assert record.result.primary_metric == "loss"
    assert record.result.metrics["test"].keys() == {"loss", "perplexity", "bits_per_byte", "token_accuracy"}
