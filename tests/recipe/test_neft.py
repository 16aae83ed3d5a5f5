"""NeFT from end to end: a full fine-tuning, then the rows that it has turned the most; its id, and what is refused."""

import shutil

import pytest
import torch
from refusals import refusal
from safetensors.torch import load_file, save_file

from rowsft import report
from rowsft.config.compose import compose
from rowsft.config.run_spec import run_spec
from rowsft.config.settings import trainer_settings
from rowsft.plan import plan
from rowsft.runner.run import run
from rowsft.store import Store
from rowsft.store.chosen import chosen_ids
from rowsft.store.identity import identity as determining


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("neft") / "runs"


def config(workshop, store, *overrides):
    return compose([*workshop.overrides("llama"), f"store={store}", "trainer.evaluate=[validation]", *overrides])


def go(workshop, store, *overrides):
    composed = config(workshop, store, "experiment_name=neft", *overrides)
    spec = run_spec(composed)
    outcome = run(spec, trainer_settings(composed), False, say=str)
    assert outcome.state == "done", outcome.message
    return Store(store).get(spec.run_id)


@pytest.fixture(scope="module")
def full(workshop, store):
    return go(workshop, store, "method=full", "trainer.steps=3")


def identity(workshop, store, changed, *overrides):
    return run_spec(config(workshop, store, "method=neft", f"method.changed='{changed}'", *overrides)).run_id


def test_the_rows_are_those_that_the_full_run_has_turned_the_most(workshop, store, full):
    record = go(workshop, store, "method=neft", f"method.changed='{full.id}'", "trainer.steps=3")
    before = load_file(workshop.folder / "models/llama/model.safetensors")
    after = load_file(full.file("adapter") / "model.safetensors")
    ids = chosen_ids(record.file("adapter"))
    assert len(ids) == 14
    for (layer, kind), rows in ids.items():
        name = f"{layer}.weight"
        turned = 1 - torch.cosine_similarity(before[name].double(), after[name].double(), dim=1)
        assert kind == "ids" and rows == set(turned.topk(3).indices.tolist())
    assert record.config["revisions"]["changed"] and record.identity["method"]["changed"] == "folder"
    assert full.id in record.config["method"]["changed"], "the run that it was chosen by can be found"
    [section] = report.sections(store, "neft")
    [steps] = [each for each in section.conditions if each.key == "steps"]
    assert steps.status == "met" and steps.detail == "neft chose by a fine-tuning that is not counted here"


def test_the_id_depends_on_the_content_and_not_on_where_it_lies(workshop, store, full, tmp_path):
    folder = full.file("adapter")
    shutil.copytree(folder, tmp_path / "copy")
    by_id = identity(workshop, store, full.id)
    assert by_id == identity(workshop, store, full.folder) == identity(workshop, store, full.id[:8])
    assert by_id == identity(workshop, store, folder) == identity(workshop, tmp_path / "runs", tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][5, 5] += 1
    save_file(weights, tmp_path / "copy/model.safetensors", metadata={"format": "pt"})
    assert identity(workshop, store, tmp_path / "copy") != by_id
    assert by_id == identity(workshop, store, full.id, "trainer.calibration_batches=7"), "it reads no batch"


def test_a_null_is_in_no_id(workshop, store):
    for method in ("row_sft", "lora"):
        spec = run_spec(config(workshop, store, f"method={method}"))
        found = determining(spec.config)
        assert "changed" not in found["method"] and found["revisions"].keys() == {"model", "data"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=neft"], "method.importance=change needs method.changed"),
        (["method=neft", "method.changed=nowhere/at/all"], "method.changed=nowhere/at/all: no such folder"),
        (
            ["method=neft", "method.changed=abcdef012345"],
            "method.changed=abcdef012345: run 'abcdef012345': is not in it",
        ),
        (["method=row_sft", "method.importance=l2", "method.changed='{full}'"], "leave out method.changed="),
        (["method=neft", "method.changed='{lora}'"], "is of method=lora and has no whole checkpoint"),
        (["method=neft", "method.changed={lora_folder}"], "holds an adapter alone"),
        (["method=neft", "method.changed='{full}'", "model.source={moved}"], "started from other weights"),
        (["method=neft", "method.changed={bert}"], "a checkpoint of a bert model"),
        (["method=neft", "method.changed=123"], "method.changed=123: read as a number"),
    ],
)
def test_what_cannot_be_compared_is_said_before_training_and_in_a_plan(
    workshop, store, full, tmp_path, overrides, message
):
    lora = go(workshop, store, "method=lora", "trainer.steps=3")
    moved = tmp_path / "moved"
    shutil.copytree(workshop.folder / "models/llama", moved)
    weights = load_file(moved / "model.safetensors")
    save_file({**weights, "more": torch.zeros(1)}, moved / "model.safetensors", metadata={"format": "pt"})
    names = {"full": full.id, "lora": lora.id, "lora_folder": lora.file("adapter"), "moved": moved}
    names["bert"] = workshop.folder / "models/bert"
    given = [each.format(**names) for each in overrides]
    runs = sorted(store.iterdir())

    def ran():
        composed = config(workshop, store, *given)
        run(run_spec(composed), trainer_settings(composed), False, say=str)

    def planned():
        composed = config(workshop, store, *given)
        plan(composed, trainer_settings(composed))

    for asked in (ran, planned):
        assert message in refusal(asked)
    assert sorted(store.iterdir()) == runs


def test_it_is_planned(workshop, store, full):
    composed = config(workshop, store, "method=neft", f"method.changed='{full.id}'")
    found = plan(composed, trainer_settings(composed))
    same = config(workshop, store, "method=row_sft", "method.importance=l2")
    assert found.trainable == plan(same, trainer_settings(same)).trainable
