"""What a run's id depends on: what cannot change the result has no part in it, and older records are found."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from older import make_older
from omegaconf import OmegaConf

from rowsft.config.compose import compose
from rowsft.config.run_spec import method_settings, run_spec
from rowsft.config_folders import SHIPPED
from rowsft.errors import UserError
from rowsft.store import Store
from rowsft.store.identity import identity, run_id
from rowsft.store.ignored import ignored


def spec(*overrides):
    return run_spec(compose(list(overrides)))


@pytest.mark.parametrize("method", ["none", "head", "full"])
@pytest.mark.parametrize("change", ["budget.rows=8", "budget=params", "budget.scope=global", "trainer.warm_head=3"])
def test_a_method_without_budget_or_selection_is_one_run_whatever_they_are(method, change):
    assert spec(f"method={method}", change).run_id == spec(f"method={method}").run_id
    assert "budget" not in identity(spec(f"method={method}").config)


@pytest.mark.parametrize(
    ("same", "base", "change"),
    [
        (True, "method=lora", "trainer.calibration_batches=3"),
        (True, "method=dora", "budget.scope=global"),
        (True, "method=shira", "trainer.warm_head=9"),
        (True, "method=none", "trainer.learning_rate=0.5"),
        (True, "method=none", "trainer.batch_size=3"),
        (True, "method=lora,method.r=4", "budget.rows=9"),
        (True, "method=row_sft,method.rows=4", "budget.params=999"),
        (True, "method=row_sft,method.importance=l2", "trainer.calibration_batches=3"),
        (True, "method=row_sft,method.importance=lowest(l2)", "trainer.warm_head=3"),
        (True, "budget.rows=8", "budget.default.like.r=99"),
        (False, "method=row_sft", "trainer.calibration_batches=3"),
        (False, "method=row_sft,method.rows=4", "budget.clip=true"),
        (False, "method=row_sft,method.importance=taylor", "trainer.warm_head=3"),
        (False, "method=lora", "budget.rows=9"),
        (False, "method=lora", "budget.default.like.r=99"),
        (False, "method=head", "trainer.learning_rate=0.5"),
        (False, "method=none", "trainer.eval_batch_size=3"),
        (False, "method=none", "seed=3"),
        (False, "method=none", "trainer.autocast=bf16"),
        (False, "method=full", "trainer.batch_size=3"),
    ],
)
def test_a_setting_counts_where_it_can_change_something(same, base, change):
    base = base.split(",")
    assert (spec(*base, change).run_id == spec(*base).run_id) is same


def test_what_a_method_ignores_is_said_in_its_yaml_and_reaches_no_class():
    for path in (SHIPPED / "method").glob("*.yaml"):
        config = OmegaConf.to_container(compose([f"method={path.stem}"]))
        assert "ignores" not in config["method"] and isinstance(config["ignores"], list)
        content = yaml.safe_load(path.read_text())
        # No record of a preset under a name of its own is older than the declaration.
        may_be_older = "defaults" not in content or "name" not in content
        if "defaults" in content:
            # A file that builds on another one declares nothing of its own.
            content = yaml.safe_load(path.with_stem(content["defaults"][0]).read_text())
        assert config["ignores"] == content.get("ignores", [])
        recorded_before = {key: value for key, value in config.items() if key != "ignores"}
        assert not may_be_older or identity(recorded_before) == identity(config)


def test_rules_of_a_method_of_ones_own():
    config = {
        "method": {"name": "mine", "size": 3, "kind": None},
        "budget": {"rows": 8},
        "trainer": {"a": 1, "b": 2},
        "ignores": [
            "budget.rows if method.size",
            "trainer.a if method.kind",
            "trainer.b, budget.none if method.size=2|3",
        ],
    }
    assert ignored(config) == ["budget.rows", "trainer.b", "budget.none"]
    assert identity(config) == {
        "results_version": 2,
        "method": {"name": "mine", "size": 3, "kind": None},
        "budget": {},
        "trainer": {"a": 1},
    }
    for wrong in ("budget", ["budget rows"], [3], ["a if"]):
        with pytest.raises(UserError, match=r"method\.ignores"):
            ignored({**config, "ignores": wrong})


def as_recorded_before(spec, root):
    """What an older version left of that run: its id is of the whole config, and nothing says what is ignored."""
    with Store(root).open(spec.config) as run:
        run.begin().finish("done", metrics={"test": {"accuracy": 0.5}})
    return make_older(run.path)


@pytest.mark.parametrize("later", ["budget.rows=8", "budget.rows=2"])
def test_a_run_that_an_older_version_recorded_is_found(tmp_path, later):
    """Under its own budget and under any other: none has one. With the listed store of a sweep as without."""
    at = f"store={tmp_path}"
    old = as_recorded_before(spec(at, "method=none", "budget.rows=8"), tmp_path)
    other = as_recorded_before(spec(at, "method=lora", "budget.rows=8"), tmp_path)
    found = spec(at, "method=none", later)
    assert (found.run_id, found.folder) == (old, tmp_path / old)
    assert Store(tmp_path).is_done(found.run_id)
    with Store(tmp_path).open(found.config) as run:
        assert run.id == old and run.record.result is not None
    assert Store(tmp_path).get(old).identity == identity(found.config)
    assert spec(at, "method=lora", "budget.rows=8").run_id == other
    assert spec(at, "method=lora", "budget.rows=9").run_id == run_id(spec(at, "method=lora", "budget.rows=9").config)
    assert {path.name for path in tmp_path.iterdir()} == {old, other}


def test_of_an_old_and_a_new_record_the_finished_one_holds(tmp_path):
    at = f"store={tmp_path}"
    config = spec(at, "method=full").config
    Store(tmp_path).open(config).close()
    new = run_id(config)
    shutil.move(tmp_path / new, tmp_path / "aside")
    old = as_recorded_before(spec(at, "method=full"), tmp_path)
    shutil.move(tmp_path / "aside", tmp_path / new)
    assert spec(at, "method=full").run_id == old


def test_the_same_data_are_the_same_run_wherever_they_lie(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.csv").write_text("text,label\na,0\n")
    shutil.copy(tmp_path / "data" / "rows.csv", tmp_path / "copy.csv")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    spellings = ["data/rows.csv", "./data/rows.csv", "data/../data/rows.csv", "~/data/rows.csv", "copy.csv"]
    spellings.append(str(tmp_path / "data" / "rows.csv"))
    ids = {spec("task=text_classification", f"task.data.path={path}").run_id for path in spellings}
    assert len(ids) == 1
    # The ending says how a file is read.
    shutil.copy("copy.csv", "copy.tsv")
    assert spec("task=text_classification", "task.data.path=copy.tsv").run_id not in ids
    # A file called like a column, a class or a metric is not meant by its name.
    before = spec("task=text_classification", "task.data.path=copy.csv").run_id
    Path("text").write_text("x")
    Path("accuracy").write_text("x")
    assert spec("task=text_classification", "task.data.path=copy.csv").run_id == before


def test_the_same_model_folder_is_the_same_run_however_it_is_spelt(tmp_path, monkeypatch):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    ids = {spec(f"model.source={path}").run_id for path in ("./tiny", "tiny/", "~/tiny", f"{tmp_path}/tiny")}
    # A folder has no revision.
    ids.add(spec("model.source=tiny", "model.revision=main").run_id)
    assert len(ids) == 1
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{ }")
    assert spec("model.source=./other").run_id not in ids


@pytest.mark.parametrize("typed", ["20261126", "1e3", "true", "007", "0.10", "1_000", "a-b.c", "'quoted'"])
def test_the_name_of_an_experiment_is_the_text_that_was_typed(typed):
    assert compose([f"experiment_name={typed}"]).experiment_name == typed.strip("'")


@pytest.mark.parametrize("typed", ["[1]", "null", "{a:1}", "''", "../../x", "'a\nb'", "'<b>'", "'=cmd'", "'a '"])
def test_what_cannot_name_an_experiment_is_refused_in_one_line(typed):
    with pytest.raises(UserError, match="experiment_name") as caught:
        compose([f"experiment_name={typed}"])
    assert "\n" not in str(caught.value)


def test_a_record_whose_experiment_is_a_number_reads_as_its_text(tmp_path):
    with Store(tmp_path).open(compose_plain()) as run:
        run.begin().finish("done", metrics={})
    path = run.path / "record.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, "experiments": [20261126, 1e3]}))
    (record,) = Store(tmp_path).runs("20261126")
    assert record.experiments == ["20261126", "1000.0"] and Store(tmp_path).experiments() == ["1000.0", "20261126"]


def compose_plain():
    return {"seed": 1, "method": {"name": "lora"}, "experiment_name": "x"}


def test_keys_of_somebody_elses_method_are_its_own():
    """`changed` and `alpha` mean what they mean in the files of row-SFT and LoRA alone."""
    method = {"_target_": "mine.Mine", "name": "mine", "changed": "no folder of that name", "alpha": None}
    assert method_settings({"method": method, "model": {}, "seed": 1, "store": "runs"}) == method
    assert identity({"method": method})["method"] == method
