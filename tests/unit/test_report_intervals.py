"""Intervals as they are shown: inside what the metric can be, for every metric, and on an axis that can be read."""

import tracemalloc

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from report_factory import finish, outcomes, regression

from rowsft import report
from rowsft.formulas import FORMULAS
from rowsft.report import plots, tables
from rowsft.report.markdown import markdown
from rowsft.report.predictions import scored
from rowsft.store import Store


def classes(right, n=120, kinds=3):
    """Predictions of several classes, the first `right` of them right."""
    given = [(i if i < right else i + 1) % kinds for i in range(n)]
    return [{"id": f"{i:04d}", "split": "test", "prediction": given[i], "label": i % kinds} for i in range(n)]


def macro_f1(rows):
    """The mean over classes of 2 PR / (P + R), precision and recall counted one by one."""
    found = []
    for one in sorted({row["label"] for row in rows}):
        predicted = [row["label"] for row in rows if row["prediction"] == one]
        true = [row["prediction"] for row in rows if row["label"] == one]
        precision, recall = predicted.count(one) / len(predicted), true.count(one) / len(true)
        found.append(2 * precision * recall / (precision + recall))
    return sum(found) / len(found)


def one_section(store):
    (section,) = report.sections(store.root, "demo")
    return section


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_an_accuracy_in_percent_keeps_its_interval_and_its_place(tmp_path, seeds):
    store = Store(tmp_path / "runs")
    values = (83.25, 84.75, 82.5)[:seeds]
    for seed, value in enumerate(values, start=1):
        finish(store, [], method="lora", seed=seed, task="sentiment", metric=("accuracy", value))
    finish(store, [], method="full", seed=1, task="sentiment", metric=("accuracy", -3.0))
    section = one_section(store)
    (line,) = [line for line in section.lines if line.method == "lora"]
    assert line.value == pytest.approx(np.mean(values)) and not line.estimate.cut
    if seeds > 1:
        assert line.estimate.low < line.value < line.estimate.high
    low, high = plots.Panel(section).limits()
    assert low < -3 and high > max(values)
    assert report.build(store.root, "demo", tmp_path / "out").page.exists()


def test_an_interval_of_two_seeds_is_cut_at_the_metrics_range_and_shown_so(tmp_path):
    store = Store(tmp_path)
    for seed, right in ((1, 60), (2, 98)):
        finish(store, outcomes(right), method="lora", seed=seed, task="sentiment")
    section = one_section(store)
    (line,) = section.lines
    # mean 0.79, t(0.975, 1) = 12.706: the interval by itself is [-1.62, 3.20]
    assert (line.value, line.estimate.low, line.estimate.high) == (pytest.approx(0.79), 0.0, 1.0) and line.estimate.cut
    assert tables.metric(line) == "0.7900 [0.0000, 1.0000]"
    assert "beyond what accuracy can be are cut there" in markdown(section)


def test_a_correlation_may_be_negative_but_not_beyond_one(tmp_path):
    store = Store(tmp_path)
    for seed in (1, 2):
        finish(store, regression("lora", seed, noise=(0.1, 9.0)[seed - 1]), method="lora", seed=seed)
    (line,) = one_section(store).lines
    assert (line.estimate.low, line.estimate.high) == (-1.0, 1.0)


def test_intervals_inside_the_range_are_left_alone(tmp_path):
    store = Store(tmp_path)
    for seed, right in ((1, 80), (2, 81), (3, 82)):
        finish(store, outcomes(right), method="lora", seed=seed, task="sentiment")
    section = one_section(store)
    (line,) = section.lines
    assert tables.metric(line) == "0.8100 ± 0.0248" and not line.estimate.cut
    assert "are cut there" not in markdown(section)


def test_f1_as_primary_metric_has_intervals_and_paired_differences(tmp_path):
    store = Store(tmp_path)
    scores = {}
    for method, right in (("lora", 90), ("row_sft", 99)):
        rows = classes(right)
        scores[method] = macro_f1(rows)
        finish(store, rows, method=method, task="sentiment", metric=("f1", scores[method]))
    line = one_section(store).lines[0]
    assert line.method == "row_sft" and line.metric == "f1"
    assert (
        line.estimate.low < line.value < line.estimate.high
        and line.estimate.covers == "95 % test-set interval, one seed"
    )
    assert line.minus_lora.value == pytest.approx(scores["row_sft"] - scores["lora"])
    assert line.minus_lora.low < line.minus_lora.value < line.minus_lora.high and line.minus_lora.examples == 120


@pytest.mark.parametrize("name, constant", [("pearson", 2.5), ("spearman", 2.5), ("matthews", 1), ("f1", 0)])
def test_a_constant_prediction_has_the_tasks_value_and_an_interval(tmp_path, name, constant):
    store = Store(tmp_path)
    rows = [{**row, "prediction": constant} for row in outcomes(50)]
    rows = [{**row, "label": index % 2 if name != "f1" else 1} for index, row in enumerate(rows)]
    finish(store, rows, method="lora", task="sentiment", metric=(name, 0.0))
    (line,) = one_section(store).lines
    assert (line.value, line.estimate.low, line.estimate.high) == (0.0, 0.0, 0.0)


def axis_limits(section):
    figure = Figure()
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    plots.Panel(section).draw(axis, plots.LIGHT)
    return axis.get_ylim()


def test_the_axis_shows_the_values_apart_however_wide_the_intervals_are(tmp_path):
    store = Store(tmp_path)
    for method, rights in (("lora", (70, 90)), ("row_sft", (72, 92)), ("dora", (74, 94))):
        for seed, right in enumerate(rights, start=1):
            finish(store, outcomes(right), method=method, seed=seed, task="sentiment")
    section = one_section(store)
    assert all((line.estimate.low, line.estimate.high) == (0.0, 1.0) for line in section.lines)
    low, high = axis_limits(section)
    values = [line.value for line in section.lines]
    assert low < min(values) and max(values) < high
    assert (max(values) - min(values)) / (high - low) > 0.2


def test_an_axis_holds_narrow_intervals_whole(tmp_path):
    store = Store(tmp_path)
    for method, right in (("lora", 50), ("row_sft", 90)):
        finish(store, outcomes(right), method=method, task="sentiment")
    section = one_section(store)
    low, high = axis_limits(section)
    assert (
        low < min(line.estimate.low for line in section.lines)
        and max(line.estimate.high for line in section.lines) < high
    )


def test_many_settings_are_drawn_by_method_with_the_best_named(tmp_path):
    store = Store(tmp_path)
    for number in range(45):
        method = ("lora", "row_sft")[number % 2]
        finish(store, outcomes(30 + number), method=method, task="sentiment", budget={"rows": number // 2 + 1})
    section = one_section(store)
    assert [point.name for point in plots.Panel(section).labelled] == ["row-SFT (rows=22)", "LoRA (rows=23)"]
    text = report.text([section])
    assert "the best 40 of 45 rows by accuracy" in text and "(rows=23)" in text
    assert "LoRA (rows=1) " not in text and "| LoRA (rows=1) |" in markdown(section)
    assert np.frombuffer(plots.accuracy_vs_memory([section]), np.uint8).size > 10_000


def named(rows, names=("no", "yes", "perhaps")):
    return [row | {key: names[row[key]] for key in ("prediction", "label")} for row in rows]


@pytest.mark.parametrize(("metric", "kinds"), [("accuracy", 2), ("f1", 3), ("f1", 2), ("matthews", 3)])
def test_classes_by_name_have_the_intervals_of_classes_by_number(tmp_path, metric, kinds):
    """Counted from 5, so that two classes by number are not taken for no and yes."""
    rows = classes(80, kinds=kinds)
    from_five = [row | {key: row[key] + 5 for key in ("prediction", "label")} for row in rows]
    value = FORMULAS[metric](*(np.array([row[key] for row in from_five]) for key in ("prediction", "label")))
    found = []
    for name, lines in (("numbers", from_five), ("names", named(rows))):
        store = Store(tmp_path / name)
        finish(store, lines, method="lora", task="sentiment", metric=(metric, value))
        (line,) = one_section(store).lines
        found.append((line.value, line.estimate.low, line.estimate.high))
    assert found[0] == found[1] and found[0][1] < value < found[0][2]


def test_one_endless_prediction_takes_no_more_room_than_its_length(tmp_path):
    rows = named(classes(80))
    rows[3]["prediction"] = "x" * 1_000_000
    store = Store(tmp_path)
    finish(store, rows, method="lora", task="sentiment", metric=("accuracy", 79 / 120))
    (record,) = store.runs()
    tracemalloc.start()
    found = scored(record, "test")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.metric(np.arange(120)) == pytest.approx(79 / 120) and peak < 20e6


def test_a_predictions_file_beyond_any_size_counts_as_absent(tmp_path, caplog):
    store = Store(tmp_path)
    finish(store, outcomes(80), method="lora", task="sentiment")
    (record,) = store.runs()
    with record.file("predictions").open("ab") as file:
        file.truncate(2**40)
    (line,) = one_section(store).lines
    assert line.value == pytest.approx(0.8) and line.estimate.low is None
    assert "predictions.jsonl is damaged" in caplog.text


def test_a_store_of_many_experiments_has_a_picture_of_bounded_size(tmp_path):
    store = Store(tmp_path)
    run = finish(store, outcomes(80), method="lora", task="sentiment")
    heights = {}
    for count in (1, 12, 40):
        for number in range(count):
            store.add_experiment(run, f"e{number:02d}")
        png = plots.accuracy_vs_memory(report.sections(tmp_path))
        heights[count] = int.from_bytes(png[20:24], "big")
    assert heights[1] < heights[12] == heights[40] < 2**15


def test_the_picture_of_one_run_shows_its_whole_interval(tmp_path):
    store = Store(tmp_path)
    finish(store, outcomes(50), method="full", task="sentiment", validation=False)
    section = one_section(store)
    (line,) = section.lines
    low, high = plots.Panel(section).limits()
    assert low < line.estimate.low < line.value < line.estimate.high < high
