"""A class that moves keeps the ids of its runs; records with its former name are still compared and repeated."""

import copy
import shlex

import pytest
from omegaconf import OmegaConf

from rowsft.config.compose import compose
from rowsft.export.command import command
from rowsft.methods.base import method_of
from rowsft.store.identity import identity, old_run_id, run_id
from rowsft.store.targets import MOVED, importable, recorded

METHODS = ("row_sft", "lora", "dora", "shira", "full", "head", "none", "loftq")


def plain(*overrides: str) -> dict:
    return OmegaConf.to_container(compose([*overrides, "task=sentiment", "model=minilm"]))


def with_target(config: dict, rename) -> dict:
    other = copy.deepcopy(config)
    other["method"]["_target_"] = rename(other["method"]["_target_"])
    return other


@pytest.mark.parametrize("method", METHODS)
def test_the_former_and_the_present_name_are_one_run(method):
    config = plain(f"method={method}")
    former, present = with_target(config, recorded), with_target(config, importable)
    assert former["method"]["_target_"] != present["method"]["_target_"]
    assert run_id(former) == run_id(present)
    assert old_run_id(former) == old_run_id(present)
    assert identity(present)["method"]["_target_"] == former["method"]["_target_"]
    # What the method ignores is looked up by its class in a record that does not say it.
    former.pop("ignores"), present.pop("ignores")
    assert run_id(former) == run_id(present) == run_id(config)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rename", [recorded, importable])
def test_either_name_is_run_and_repeated(method, rename):
    config = with_target(plain(f"method={method}", "seed=5"), rename)
    assert type(method_of(OmegaConf.create(config["method"]))).__module__.startswith("rowsft.")
    again = command(config)
    assert "_target_" not in again and f"method={method}" in again
    assert run_id(plain(*shlex.split(again)[2:])) == run_id(config)


def test_a_name_that_has_not_moved_stays_and_none_moves_twice():
    for name in ("mine.Method", "rowsft.tasks.sentiment.Sentiment", None, 3):
        assert importable(name) == recorded(name) == name
    assert not set(MOVED) & set(MOVED.values())


def test_ids_are_those_that_runs_had_before_anything_moved():
    # Composed on the version whose row-SFT was rowsft.row_sft.RowSFT.
    config = {"method": {"_target_": "rowsft.row_sft.RowSFT", "name": "row_sft", "rows": 4}, "ignores": [], "seed": 1}
    assert run_id(config) == run_id(with_target(config, importable)) == "72c14b5b7ef2"
