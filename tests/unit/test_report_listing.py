"""`rowsft runs`: what tells the runs of a sweep apart."""

import io
import json

import pytest
from report_factory import classification, config, fail, fill, finish, outcomes
from rich.console import Console

from rowsft.report import listing
from rowsft.store import Store


def sweep(store):
    for method in ("lora", "row_sft"):
        for rows in (2, 16):
            for seed in (1, 2):
                finish(store, outcomes(50), method=method, seed=seed, task="sentiment", budget={"rows": rows})
    finish(store, outcomes(50), method="full", task="sentiment", budget={"rows": 2})


def shown(store, width):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(listing.runs_table(store, width=width))
    return console.export_text()


def test_the_runs_of_a_sweep_are_told_apart(tmp_path):
    store = Store(tmp_path)
    sweep(store)
    runs = listing.runs_list(store)
    told = {(run.method, json.dumps(run.differs)) for run in runs}
    assert len(told) == len(runs) == 9
    lora = [run.differs for run in runs if run.method == "lora"]
    assert {"budget.rows": 16, "trainer.learning_rate": 3e-4, "seed": 2} in lora
    (full,) = [run.differs for run in runs if run.method == "full"]
    assert full == {"trainer.learning_rate": 1e-4, "seed": 1}, "it has no budget"


def test_the_table_shows_short_names_and_says_once_what_all_share(tmp_path):
    store = Store(tmp_path)
    sweep(store)
    text = shown(store, 160)
    assert "rows=16, learning_rate=0.0003" in text and "budget.rows" not in text
    assert "all: model minilm, task sentiment, experiment demo" in " ".join(text.split())
    assert text.count("sentiment") == 1
    narrow = shown(store, 80)
    assert "…" not in narrow and max(map(len, narrow.splitlines())) <= 80 and "rows=16" in narrow


def test_methods_own_settings_count_among_runs_of_that_method_alone(tmp_path):
    store = Store(tmp_path)
    for r in (4, 16):
        method = config("lora")["method"] | {"r": r}
        finish(store, outcomes(50), method=method, task="sentiment", rate=1e-3)
    method = config("row_sft")["method"] | {"importance": "l2"}
    finish(store, outcomes(50), method=method, task="sentiment", rate=1e-3)
    found = {(run.method, json.dumps(run.differs)) for run in listing.runs_list(store)}
    assert found == {("lora", '{"method.r": 4}'), ("lora", '{"method.r": 16}'), ("row_sft", "{}")}


def test_many_differing_settings_are_cut_in_the_table_alone(tmp_path):
    store = Store(tmp_path)
    for number in (1, 2):
        trainer = config()["trainer"] | {f"setting_{i}": number for i in range(8)}
        finish(store, outcomes(50), task="sentiment", trainer=trainer)
    assert all(len(run.differs) == 8 for run in listing.runs_list(store))
    assert "+3 more" in shown(store, 200)


def test_a_killed_job_is_listed_with_its_reason(tmp_path):
    store = Store(tmp_path)
    finish(store, outcomes(50), task="sentiment", budget={"rows": 2})
    killed = {"type": "ProcessGone", "message": "killed by signal 9", "traceback": None, "phase": None}
    fail(store, "interrupted", killed, task="sentiment", budget={"rows": 16})
    text = shown(store, 160)
    assert "interrupted" in text and "ProcessGone: killed by signal 9" in text and "rows=16" in text


def test_another_base_is_listed_by_its_folder(tmp_path):
    store = Store(tmp_path)
    model = config()["model"] | {"name": "llama3_8b", "source": "./models/tiny"}
    finish(store, outcomes(50), task="sentiment", model=model)
    finish(store, outcomes(50), task="sentiment")
    assert {run.model for run in listing.runs_list(store)} == {"tiny", "minilm"}


def test_the_list_of_runs(tmp_path):
    store = fill(tmp_path)
    listed = listing.runs_list(store, listing.Query("demo"))
    assert len(listed) == len(store.runs()) and [json.loads(json.dumps(vars(run))) for run in listed] == list(
        map(vars, listed)
    )
    oom = next(run for run in listed if run.state == "oom")
    assert oom.value is None and oom.reason.startswith("OutOfMemoryError") and oom.attempts == 1
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(listing.runs_table(store))
    shown = console.export_text()
    assert oom.id in shown and "19 done, 1 failed, 1 oom" in shown and "[" not in shown.replace("[bold]", "")
    assert listing.runs_list(store, listing.Query("other")) == []


def test_a_metric_that_is_no_number_on_test_is_not_shown_as_that_of_validation(tmp_path):
    """Predictions that are all alike have no correlation: nan, which a record holds as null."""
    store = Store(tmp_path / "runs")
    finish(store, classification("lora", 1), validation=0.9, metric=("pearson", float("nan")))
    (listed,) = listing.runs_list(store)
    assert (listed.metric, listed.split, listed.value) == ("pearson", "test", None)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(listing.runs_table(store))
    text = console.export_text()
    assert "pearson is no number" in text and "0.9" not in text


def test_a_repetition_that_did_not_finish_leaves_the_run_done(tmp_path):
    store = Store(tmp_path / "runs")
    finish(store, classification("lora", 1), task="sentiment")
    config = store.runs()[0].config
    with pytest.raises(KeyboardInterrupt), store.open(config) as run:
        run.begin()
        raise KeyboardInterrupt
    (listed,) = listing.runs_list(store)
    assert store.runs()[0].state == "interrupted"
    assert listed.state == "done" and listed.value is not None and listed.attempts == 2
    assert listed.reason == "attempt 2 interrupted"
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(listing.runs_table(store))
    assert f"{listed.metric} {listed.value:.4f}; attempt 2 interrupted" in console.export_text()


def test_names_with_marks_of_a_terminal_are_shown_as_they_are(tmp_path):
    store = Store(tmp_path / "a [/x]")
    for rows in (2, 16):
        finish(store, outcomes(50), task="sentiment", budget={"rows": rows}, experiment="b [/bold]")
    text = " ".join(shown(store, 200).split())
    assert "a [/x]" in text and "experiment b [/bold]" in text
