"""A model card: its command makes the same run again, and evaluations are among its numbers."""

import shlex

import pytest
from harness_factory import evaluate
from omegaconf import OmegaConf
from report_factory import finish, outcomes

from rowsft.config.compose import compose
from rowsft.export import card
from rowsft.export.command import command
from rowsft.export.source import Source
from rowsft.store import Store, run_id
from rowsft.tasks.heads import CAUSAL_LM

OVERRIDES = [
    ["seed=1"],
    ["method=lora", "seed=7", "trainer.learning_rate=3e-4", "budget.rows=12"],
    ["task=glue/stsb", "method=row_sft", "method.importance='lowest(l2)'", "budget=like_lora"],
    ["budget.like={method:lora,r:4}", "model.target_modules=[query,value]", r"model.source='./a b/it\'s'"],
    ["task=social_iqa", "model=llama3_8b", "trainer=bf16", "budget.like={method:lora,a:[1,null],b:'true'}"],
    ["experiment=quickstart", "method=full"],
]


@pytest.mark.parametrize("overrides", OVERRIDES, ids=" ".join)
def test_the_command_makes_the_same_run(overrides):
    config = OmegaConf.to_container(compose(overrides))
    program, verb, *again = shlex.split(command(config))
    assert (program, verb) == ("rowsft", "run")
    assert run_id(OmegaConf.to_container(compose(again))) == run_id(config)


def test_a_run_of_a_group_file_that_is_gone_has_no_command():
    config = OmegaConf.to_container(compose([]))
    assert command({**config, "model": {**config["model"], "name": "gone"}}) is None


def test_a_card_has_the_newest_number_of_each_task_of_lm_evaluation_harness(tmp_path):
    store = Store(tmp_path)
    run = finish(store, outcomes(60), method="lora", task="sentiment")
    evaluate(store, run, "boolq", [1, 0, 0, 0])
    evaluate(store, run, "boolq", [1, 0, 1, 1])
    evaluate(store, run, "piqa", [1, 0], limit=2)
    source = Source(run, tmp_path, {}, {"source": "package:minilm"}, CAUSAL_LM, store.get(run))
    rows = [line for line in card.text(source, "lora", run).splitlines() if "lm-eval" in line]
    assert rows == ["| boolq acc (lm-eval) | 0.7500 |", "| piqa acc, limit 2 (lm-eval) | 0.5000 |"]
