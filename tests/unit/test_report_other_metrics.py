"""Metrics beside the primary one in reports: the tasks of a mix, held-out loss, with intervals of their own."""

import csv

import numpy as np
import pytest
from report_factory import finish
from scipy import stats

from rowsft import report
from rowsft.report.notes import notes
from rowsft.report.tables import blocks
from rowsft.store import Store

TITLE = "Other metrics on the test split"
TASKS = {"boolq": 120, "piqa": 60}


def mixed(seed: int) -> list[dict]:
    """Predictions of a mix of two tasks, with the log-likelihood of each right answer."""
    draw = np.random.default_rng(seed)
    return [
        {
            "id": f"{task}/{i}",
            "split": "test",
            "task": task,
            "prediction": int(hit),
            "label": 1,
            "correct": bool(hit),
            "negative_log_likelihood": float(draw.gamma(2.0)),
            "tokens": int(draw.integers(1, 6)),
        }
        for task, n in TASKS.items()
        for i, hit in enumerate(draw.random(n) < (0.8 if task == "boolq" else 0.5))
    ]


def measured(predictions: list[dict]) -> dict[str, float]:
    """The metrics of these predictions, by plain sums."""
    of = {task: [line for line in predictions if line["task"] == task] for task in TASKS}
    accuracies = {
        f"accuracy_{task}": sum(line["label"] == line["prediction"] for line in own) / len(own)
        for task, own in of.items()
    }
    loss = sum(line["negative_log_likelihood"] for line in predictions) / sum(line["tokens"] for line in predictions)
    return {"accuracy_mean": sum(accuracies.values()) / len(TASKS), **accuracies, "loss": loss, "entropy": 2.5}


def run(store: Store, method: str, seed: int = 1) -> dict[str, float]:
    predictions = mixed(10 * seed + len(method))
    values = measured(predictions)
    mean = values.pop("accuracy_mean")
    finish(store, predictions, metric=("accuracy_mean", mean), others=values, method=method, seed=seed, task="mix")
    return values


def only_section(store: Store):
    (section,) = report.sections(store, "demo")
    return section


def other(section):
    (sheet,) = [sheet for sheet in blocks(section) if sheet.title == TITLE]
    return sheet


def test_tasks_of_a_mix_stand_in_columns_with_intervals_over_their_own_examples(tmp_path):
    store = Store(tmp_path)
    expected = {method: run(store, method) for method in ("row_sft", "lora")}
    section = only_section(store)
    sheet = other(section)
    assert [column.title for column in sheet.columns] == [
        "method",
        "accuracy_boolq",
        "accuracy_piqa",
        "loss",
        "entropy",
    ]
    for line, method in zip(section.lines, expected, strict=True):
        assert {name: one.value for name, one in line.others.items()} == pytest.approx(expected[method])
        for task, n in TASKS.items():
            one = line.others[f"accuracy_{task}"]
            bounds = stats.binomtest(round(one.value * n), n).proportion_ci(method="wilson")
            assert (one.low, one.high) == pytest.approx((bounds.low, bounds.high))
        assert line.others["loss"].low < line.others["loss"].value < line.others["loss"].high
        # No prediction gives it back: the number stands alone.
        assert line.others["entropy"].low is None
    assert sheet.rows[0][-1] == "2.5000"
    assert any("test-set interval" in note for note in notes(section))


def test_seeds_give_students_interval(tmp_path):
    store = Store(tmp_path)
    values = [run(store, "lora", seed)["loss"] for seed in (1, 2, 3)]
    (line,) = only_section(store).lines
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert (line.others["loss"].low, line.others["loss"].high) == pytest.approx((low, high))
    assert line.flat()["test_loss_low"] == pytest.approx(low)


def test_every_form_of_the_report_has_them_and_a_dash_where_a_row_has_none(tmp_path):
    store = Store(tmp_path / "runs")
    values = run(store, "lora")
    finish(store, mixed(3), metric=("accuracy_mean", 0.5), method="head", task="mix")
    files = report.build(store.root, "demo", tmp_path / "out")
    head, lora = other(files.sections[0]).rows
    assert head == ["head only", *["–"] * 4]
    assert lora[1].startswith(f"{values['accuracy_boolq']:.4f} [")
    for text in (files.markdown.read_text(), files.page.read_text(), report.text(files.sections, width=60)):
        assert TITLE in text and "accuracy_piqa" in text and f"{values['loss']:.4f}" in text
    with files.table.open(newline="") as stream:
        rows = {row["method"]: row for row in csv.DictReader(stream)}
    low, high = (float(rows["lora"][f"test_accuracy_boolq_{end}"]) for end in ("low", "high"))
    value = float(rows["lora"]["test_accuracy_boolq"])
    assert low < value < high and value == pytest.approx(values["accuracy_boolq"])
    assert rows["head"]["test_accuracy_boolq"] == rows["head"]["test_accuracy_boolq_low"] == ""


def test_a_table_without_others_has_no_such_block(tmp_path):
    store = Store(tmp_path)
    finish(store, mixed(1), metric=("accuracy_mean", 0.5), method="lora", task="mix")
    assert not [sheet for sheet in blocks(only_section(store)) if sheet.title.startswith("Other metrics")]
