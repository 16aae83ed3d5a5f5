"""The command on a model card composes the configuration that it was worked out from."""

import shlex

import pytest
from omegaconf import OmegaConf

from rowsft.config.compose import compose
from rowsft.export.command import command
from rowsft.store import run_id

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
