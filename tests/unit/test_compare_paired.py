"""Two runs on the same examples: the interval of a metric's difference."""

import numpy as np
import pytest
from compare_factory import amend, compared, lora_and_rows, number, shown, two_attempts
from report_factory import classification, finish, metric_of, regression

from rowsft.errors import UserError
from rowsft.report.compare import compare
from rowsft.store import Store


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return lora_and_rows(tmp_path_factory.mktemp("compare") / "runs")


def test_metrics_on_the_same_examples_have_the_paired_interval(pair):
    comparison = compared(pair)
    found = number(comparison, "metrics.test.accuracy")
    right = [
        np.array([line["prediction"] == line["label"] for line in classification(method, 1)], dtype=float)
        for method in ("lora", "row_sft")
    ]
    gaps = right[1] - right[0]
    assert found.difference == pytest.approx(gaps.mean()) and found.paired.examples == 400
    # Of a mean the bootstrap interval is near the normal one.
    half = 1.96 * gaps.std() / 20
    assert (found.paired.low, found.paired.high) == pytest.approx((gaps.mean() - half, gaps.mean() + half), abs=0.01)
    assert number(comparison, "metrics.validation.accuracy").paired is None
    text = shown(comparison)
    interval = f"+0.0200 [{found.paired.low:+.4f}, {found.paired.high:+.4f}]"
    assert f"metrics.test.accuracy: {interval}, paired on the same 400 examples (95 %)" in text.splitlines()


def test_seeds_may_differ_and_every_metric_of_the_predictions_has_its_interval(tmp_path):
    store = Store(tmp_path)
    runs = []
    for seed in (1, 2):
        lines = regression("lora", seed)
        runs.append(finish(store, lines, seed=seed))
        a, b = (np.array([line[key] for line in lines]) for key in ("prediction", "label"))
        spearman = float(np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1])
        metrics = {"test": {"pearson": metric_of(lines, "stsb")[1], "spearman": spearman, "other": 0.5}}
        amend(store, runs[-1], metrics=metrics)
    comparison = compare(*runs, tmp_path)
    for name in ("pearson", "spearman"):
        found = number(comparison, f"metrics.test.{name}")
        assert found.paired.low < found.difference < found.paired.high and found.paired.examples == 200
        assert found.paired.value == pytest.approx(found.difference, abs=1e-9)
    assert number(comparison, "metrics.test.other").paired is None
    assert set(comparison.settings) == {"seed"}


def test_other_examples_have_no_paired_interval(tmp_path):
    store = Store(tmp_path)
    runs = [finish(store, classification("lora", 1, n=n), task="sentiment", seed=n) for n in (400, 300)]
    comparison = compare(*runs, tmp_path)
    assert number(comparison, "metrics.test.accuracy").difference is not None
    assert all(number.paired is None for number in comparison.numbers) and "paired on" not in shown(comparison)


def test_predictions_that_are_gone_or_damaged(tmp_path):
    folders = two_attempts(tmp_path)
    path = folders[1] / "attempt-1" / "predictions.jsonl"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(UserError, match=r"predictions\.jsonl is damaged \(JSONDecodeError: .*remove it"):
        compare(*map(str, folders))
    path.unlink()
    assert all(number.paired is None for number in compare(*map(str, folders)).numbers)
