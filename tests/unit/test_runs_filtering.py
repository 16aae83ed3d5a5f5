"""`rowsft runs --where ... --sort KEY`: which runs are listed and in which order."""

import json

import pytest
from report_factory import config, fill, finish, outcomes

from rowsft.cli.main import main
from rowsft.errors import UserError
from rowsft.report.filtering import matching, ordered
from rowsft.report.listing import Query, runs_list
from rowsft.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The demo, and a sweep over rows of two methods that have a budget and one that ignores it."""
    store = fill(tmp_path_factory.mktemp("runs"))
    for method in ("lora", "full"):
        for rows in (2, 16):
            ignores = ["budget"] if method == "full" else []
            changes = {"budget": {"rows": rows}, "ignores": ignores, "experiment": "sweep"}
            finish(store, outcomes(40 + rows), method=method, task="sentiment", **changes)
    return store


def listed(store, *where, sort=None):
    return runs_list(store, Query(where=where, sort=sort))


def rate(run, config):
    """A run's learning rate; `none` trains nothing and has none."""
    return config["trainer"]["learning_rate"] if run.method != "none" else float("nan")


@pytest.mark.parametrize(
    ("where", "meant"),
    [
        ("method=lora", lambda run, config: run.method == "lora"),
        ("method==lora", lambda run, config: run.method == "lora"),
        ("method!=lora state=done", lambda run, config: run.method != "lora" and run.state == "done"),
        ("method=dora state=failed", lambda run, config: run.method == "dora" and run.state == "failed"),
        ("reason~MEMORY", lambda run, config: run.state == "oom"),
        ("seed>=2", lambda run, config: run.seed >= 2),
        ("seed<2 task=stsb", lambda run, config: run.seed < 2 and run.task == "stsb"),
        ("trainer.learning_rate<=3e-4", lambda run, config: rate(run, config) <= 3e-4),
        ("learning_rate=0.0010", lambda run, config: rate(run, config) == 1e-3),
        ("value>0.8", lambda run, config: run.value is not None and run.value > 0.8),
        ("metric>0.8 metric=pearson", lambda run, config: run.metric == "pearson" and run.value > 0.8),
        ("value=null", lambda run, config: run.value is None),
        ("experiment=sweep", lambda run, config: "sweep" in run.experiments),
        ("experiments!=sweep", lambda run, config: "sweep" not in run.experiments),
        ("attempts=1 model~lm", lambda run, config: run.attempts == 1),
        ("evaluate=[validation,test]", lambda run, config: True),
        ("evaluate~valid id~f", lambda run, config: "f" in run.id),
        ("target_modules=query", lambda run, config: False),
        ("seconds>=1e9", lambda run, config: False),
        ("started<2020", lambda run, config: False),
        ("started>2020-01-01 started!=2020-01-01T00:00", lambda run, config: True),
        ("task='a b'", lambda run, config: False),
    ],
)
def test_conditions_mean_what_they_say(store, where, meant):
    configs = {record.id: record.config for record in store.runs()}
    expected = {run.id for run in runs_list(store) if meant(run, configs[run.id])}
    assert {run.id for run in listed(store, where)} == expected
    apart = [where] if "'" in where else where.split()
    assert {run.id for run in listed(store, *apart)} == expected


def test_a_setting_that_the_method_ignores_is_none_of_its_run(store):
    assert {run.method for run in listed(store, "rows=16")} == {"lora"}
    assert len(listed(store, "experiment=sweep rows!=16")) == 2, "full fine-tuning's two configurations are one run"
    (full,) = listed(store, "experiment=sweep rows=null")
    assert full.method == "full"


def test_a_day_is_as_long_as_it_is_typed():
    rows = {str(hour): {"started": f"2026-11-26T{hour}:30:00+00:00"} for hour in (10, 23)}
    rows["next"] = {"started": "2026-11-27T00:00:00+00:00"}
    rows["never"] = {"started": None}
    assert matching(rows, ["started=2026-11-26"]) == ["10", "23"] == matching(rows, ["started<=2026-11-26"])
    assert matching(rows, ["started>2026-11-26"]) == ["next"]
    assert matching(rows, ["started>='2026-11-26 23:30'"]) == ["23", "next"]
    assert matching(rows, ["started=null"]) == ["never"]


def test_names_are_taken_whole_before_they_are_taken_short():
    rows = {"1": {"rows": 1, "budget.rows": 2, "method.deep.rows": 3, "method.deep.size": 4}}
    assert matching(rows, ["rows=1"]) and matching(rows, ["budget.rows=2"]) and matching(rows, ["size=4"])
    # Without its group first, then by its end.
    rows = {"1": {"budget.r": 2, "budget.default.like.r": 3}}
    assert matching(rows, ["r=2"]) and matching(rows, ["like.r=3"])


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("lerning_rate=1", "no run has the key lerning_rate; the nearest: trainer.learning_rate"),
        ("name=lora", r"name may be method.name, model.name, task.name(, tracker.name)?; give one of them"),
        ("method", "expected KEY=VALUE"),
        ("method=", "expected KEY=VALUE"),
        ("=lora", "expected KEY=VALUE"),
        ("method<lora", "method is not a number; use =, != or ~"),
        ("seed<many", "expected a number after <"),
        ("value>nan", "expected a number after >"),
        ("started<yesterday", "expected a time"),
        ("method='lora", "No closing quotation"),
    ],
)
def test_a_condition_that_cannot_be_meant_is_refused_in_one_line(store, where, said):
    with pytest.raises(UserError, match=said) as refused:
        listed(store, where)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("key", ["", "-"])
def test_a_key_to_sort_by_that_is_empty_is_refused_in_one_line(store, key):
    with pytest.raises(UserError, match=f"--sort '{key}': expected a key such as value, or -value"):
        listed(store, sort=key)


def test_any_condition_holds_for_no_runs_of_an_empty_store(tmp_path):
    assert listed(Store(tmp_path), "budget.rows=3", sort="budget.rows") == []


def test_runs_are_sorted_by_any_key_with_those_that_have_none_last(store):
    for sort, falling in (("value", False), ("-value", True), ("-metric", True)):
        values = [run.value for run in listed(store, "experiment=demo", sort=sort)]
        known = [value for value in values if value is not None]
        assert known == sorted(known, reverse=falling) and values[: len(known)] == known and None in values
    rates = {record.id: record.config["trainer"]["learning_rate"] for record in store.runs()}
    *trained, untrained = listed(store, sort="-learning_rate")
    found = [rates[run.id] for run in trained]
    assert found == sorted(found, reverse=True) and untrained.method == "none"
    methods = [run.method for run in listed(store, sort="method")]
    assert methods == sorted(methods)
    with pytest.raises(UserError, match=r"--sort -sed: no run has the key sed; the nearest: seed"):
        listed(store, sort="-sed")


def test_equal_keys_keep_the_order_and_unlike_values_are_told_apart():
    rows = {name: {"x": value} for name, value in {"a": "b", "b": 2, "c": 1, "d": None, "e": 1, "f": [1]}.items()}
    assert ordered(rows, "x") == ["c", "e", "b", "f", "a", "d"]
    assert ordered(rows, "-x") == ["a", "f", "b", "c", "e", "d"]


def test_the_table_and_json_are_of_the_same_runs(store, capsys):
    def told(*options):
        with pytest.raises(SystemExit) as ended:
            main(["runs", "--store", str(store.root), "--where", "experiment=demo task=stsb", *options])
        assert ended.value.code == 0
        return capsys.readouterr().out

    listed = json.loads(told("--sort", "-value", "--json"))
    table = told("--sort", "-value").splitlines()
    # A reason may be folded over more lines.
    ids = [line.split()[0] for line in table[1:] if line[:1].strip()][: len(listed)]
    assert [run["id"] for run in listed] == ids and len(ids) > 10
    of = len(store.runs())
    assert f"{len(ids)} of {of} runs in" in " ".join(" ".join(table).split())


def test_labels_as_listed_and_plain_names_both_find_a_run(tmp_path):
    store = Store(tmp_path)
    for path in ("one.csv", "two.csv"):
        data = {"path": path}
        task = {"name": "mine", "data": data, "primary_metric": "accuracy"}
        finish(store, outcomes(50), task=task, revisions={"model": "m", "data": {}})
    labels = sorted(run.task for run in runs_list(store))
    assert len(set(labels)) == 2 and config(task="x")
    assert len(listed(store, "task=mine")) == 2
    assert [run.task for run in listed(store, f"task='{labels[0]}'")] == ["mine"], "alone it needs no more"
