"""A method from outside the package with parameter groups of its own, through runner and planner."""

import csv
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from tiny_workshop import build_workshop

from rowsft.config.compose import compose
from rowsft.config.run_spec import run_spec
from rowsft.config.settings import trainer_settings
from rowsft.errors import UserError
from rowsft.methods.base import method_of
from rowsft.plan import plan
from rowsft.runner.run import run
from rowsft.store import Store

HERE = Path(__file__).parent


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A workshop whose settings name the example's class."""
    monkeypatch.syspath_prepend(str(HERE))
    workshop = build_workshop(tmp_path)
    given = [*workshop.overrides("bert"), "method=lora", "method._target_=slow_head.SlowHead", "method.name=slow_head"]
    given += ["method.r=2", "trainer.memory_probe_steps=0"]
    yield lambda *more, factor=0.1: compose([*given, f"+method.head_factor={factor}", *more])
    sys.modules.pop("slow_head", None)


def test_its_groups_are_stepped_at_their_rates_planned_and_recorded(own):
    config = own()
    outcome = run(run_spec(config), trainer_settings(config), rerun=False, say=lambda text: None)
    assert outcome.state == "done", outcome.message
    record = Store(config.store).get(outcome.run_id)
    groups = record.result.optimization.groups
    assert [(group.name, group.rate_factor) for group in groups] == [("adapter", 1), ("head", 0.1)]
    assert [group.parameters for group in groups] == [record.result.parameters.adapter, record.result.parameters.head]
    assert plan(config, trainer_settings(config)).head_parameters == groups[1].parameters
    with record.file("curve").open() as stream:
        slow = [float(row["loss"]) for row in csv.DictReader(stream)]
    config = own(factor=1.0)
    outcome = run(run_spec(config), trainer_settings(config), rerun=False, say=lambda text: None)
    with Store(config.store).get(outcome.run_id).file("curve").open() as stream:
        alike = [float(row["loss"]) for row in csv.DictReader(stream)]
    assert slow[0] == alike[0] and slow[1:] != alike[1:]


def test_a_strategy_it_does_not_name_is_one_line(own):
    config = own("trainer=fsdp", "trainer.processes=2")
    with pytest.raises(UserError, match="method=slow_head is not known to train like one process under it; use "):
        run(run_spec(config), trainer_settings(config), rerun=False, say=lambda text: None)


HALF = """
from attention_only import AttentionOnly


class Half(AttentionOnly):
    def parameter_groups(self, model):
        return []
"""


def test_half_of_the_protocol_is_one_line(tmp_path, monkeypatch):
    """A method that is no OptimizedMethod would be stepped as if it had no groups."""
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "half_a_method.py").write_text(HALF)
    with pytest.raises(UserError, match="it has no after_step, begin, between_steps, make_optimizer, own_optimizer"):
        method_of(OmegaConf.create({"_target_": "half_a_method.Half"}))
    for name in ("half_a_method", "attention_only"):
        sys.modules.pop(name, None)
