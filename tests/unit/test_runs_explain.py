"""`rowsft runs explain`: what an id is made of, what was left out by which rule, and how the nearest run differs."""

import copy
import json

import pytest
from older import make_older

from rowsft.cli.main import main
from rowsft.config.compose import compose
from rowsft.config.run_spec import run_spec
from rowsft.errors import UserError
from rowsft.report.explain import explain
from rowsft.report.left_out import left_out
from rowsft.store import Store
from rowsft.store.identity import run_id


def record(root, *overrides):
    spec = run_spec(compose([f"store={root}", *overrides]))
    with Store(root).open(spec.config) as run:
        run.begin().finish("done")
    return Store(root).get(spec.run_id)


def put(config, key, value):
    """A copy of the configuration with another value at that place; a key may itself hold no dots."""
    changed = copy.deepcopy(config)
    *path, last = key.split(".")
    node = changed
    for part in path:
        node = node[part]
    node[last] = value
    return changed


def changed(config, key, value):
    """Whether another value there gives another id."""
    return run_id(put(config, key, "another" if value != "another" else "yet another")) != run_id(config)


@pytest.mark.parametrize(
    "overrides",
    [
        ["method=lora", "budget.rows=4"],
        ["method=lora", "method.r=4"],
        ["method=none"],
        ["method=row_sft", "method.importance=l2"],
        ["method=row_sft", "method.importance=zo_taylor(draws=64)"],
    ],
)
def test_every_key_stands_on_the_side_that_its_effect_on_the_id_says(tmp_path, overrides):
    run = record(tmp_path, *overrides)
    found = explain(tmp_path, run.id)
    out = {item.key: item.value for item in found.left_out}
    assert found.identity and out and not set(found.identity) & set(out)
    # What others hang on: rules by name and class, what switches rules on and off; what is in no id where it is off.
    switches = {
        "method._target_",
        "method.name",
        "method.r",
        "method.importance",
        "method.alpha",
        "method.changed",
        "method.quantised_start",
        "model.quantize",
        "ignores",
        "trainer.calibration_overlap",
        "trainer.evaluate_every",
        "trainer.forgetting.path",
        "trainer.fused_linear_cross_entropy",
        "trainer.optimizer",
        "trainer.strategy",
    }
    for key, value in found.identity.items():
        if key not in {"results_version", "revisions.data", *switches}:
            assert changed(run.config, key, value), key
    for key, value in out.items():
        if key not in switches:
            assert not changed(run.config, key, value), key


def test_what_is_left_out_names_its_rule(tmp_path):
    items = {item.key: item for item in left_out(record(tmp_path, "method=lora", "method.r=4", "budget.rows=8"))}
    assert items["store"].kind == "presentation" and items["tracker._target_"].kind == "presentation"
    assert (items["budget.rows"].kind, items["budget.rows"].rule) == ("ignored", "budget if method.r")
    assert items["trainer.warm_head"].rule == "trainer.calibration_batches, trainer.warm_head"
    items = {item.key: item for item in left_out(record(tmp_path, "method=lora", "budget.rows=8"))}
    assert "budget.rows" not in items and items["budget.default.like.r"].kind == "default"


def test_a_file_counts_by_its_content(tmp_path):
    data = tmp_path / "mine.csv"
    data.write_text("text,label\n" + "".join(f"w{i},{i % 2}\n" for i in range(20)))
    run = record(tmp_path / "runs", "method=lora", "task=text_classification", f"task.data.path={data}")
    (item,) = (item for item in left_out(run) if item.kind == "content")
    assert (item.key, item.value, item.instead) == ("task.data.path", str(data), "file.csv")
    assert len(explain(tmp_path / "runs", run.id).identity["revisions.data.data.path"]) == 64


def test_the_nearest_run_is_the_one_with_the_fewest_differing_keys(tmp_path):
    run = record(tmp_path, "method=lora", "budget.rows=4", "seed=1")
    record(tmp_path, "method=dora", "budget.rows=4", "seed=1")
    record(tmp_path, "method=lora", "budget.rows=8", "seed=2")
    near = record(tmp_path, "method=lora", "budget.rows=4", "seed=7", "trainer.warm_head=9")
    found = explain(tmp_path, run.id[:8])
    assert (found.other.id, found.as_near) == (near.id, 0)
    assert found.differs == {"seed": {"a": 1, "b": 7}}, "what the method ignores is no difference"
    assert f"nearest run {near.id}" in "\n".join(found.lines())


def test_a_named_run_is_held_against_it_and_a_key_of_one_side_shows_a_dash(tmp_path):
    lora = record(tmp_path / "a", "method=lora", "budget.rows=4")
    full = record(tmp_path / "b", "method=full", "seed=2")
    found = explain(tmp_path / "a", lora.id, str(full.folder))
    assert found.as_near is None and found.differs["seed"] == {"a": lora.config["seed"], "b": 2}
    assert found.differs["budget.rows"] == {"a": 4}
    assert any(line.split() == ["budget.rows", "4", "->", "–"] for line in found.lines())
    assert explain(tmp_path / "a", lora.id).other is None, "it is alone in its store"
    with pytest.raises(UserError, match="run 'zzz': is not in it"):
        explain(tmp_path / "a", lora.id, "zzz")


def test_an_older_record_tells_the_id_that_it_would_have_today(tmp_path):
    run = record(tmp_path, "method=none", "budget.rows=8")
    old = make_older(run.folder)
    found = explain(tmp_path, old)
    assert old != run.id and found.todays_id == run.id
    assert f"today its id would be {run.id}" in "\n".join(found.lines())


def test_the_command_prints_json_and_takes_the_store_on_either_side(tmp_path, capsys):
    run = record(tmp_path, "method=lora", "budget.rows=4")
    other = record(tmp_path, "method=lora", "budget.rows=8")
    for command in (
        ["runs", "--store", str(tmp_path), "explain", run.id, other.id, "--json"],
        ["runs", "explain", run.id[:9], "--store", str(tmp_path), "--json"],
    ):
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["id"], told["other"]) == (run.id, other.id)
        assert told["differs"] == {"budget.rows": {"a": 4, "b": 8}} and told["identity"]["budget.rows"] == 4
        assert {"key", "value", "kind", "rule", "instead", "reason"} == set(told["left_out"][0])
