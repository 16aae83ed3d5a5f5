"""Intervals and paired differences against closed forms, scipy and brute force."""

import json
import math

import numpy as np
import pytest
from report_factory import classification, finish, regression
from scipy import stats

from rowsft.report import predictions as pred
from rowsft.report.resampling import one_by_one
from rowsft.report.statistics import OVER_EXAMPLES, OVER_SEEDS, over_seeds, percentiles, wilson
from rowsft.store import Store


def test_three_seeds_by_hand():
    # mean 0.80, sample deviation 0.02, t(0.975, 2) = 4.302653
    found = over_seeds([0.78, 0.80, 0.82])
    assert found.value == pytest.approx(0.80) and found.covers == OVER_SEEDS and found.seeds == 3
    half = 4.302652729911275 * 0.02 / math.sqrt(3)
    assert found.low == pytest.approx(0.80 - half) and found.high == pytest.approx(0.80 + half)


def test_seed_interval_is_scipys():
    values = [0.1, 0.4, 0.35, 0.9, 0.2]
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    found = over_seeds(values)
    assert (found.low, found.high) == pytest.approx((low, high))


@pytest.mark.parametrize("successes, n", [(0, 10), (10, 10), (37, 100), (2000, 2224)])
def test_wilson_is_the_closed_form(successes, n):
    z, p = stats.norm.ppf(0.975), successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert wilson(successes, n) == pytest.approx((centre - half, centre + half), abs=1e-9)


def bootstrap(statistic, n):
    return percentiles(one_by_one(statistic, n))


def test_bootstrap_of_a_mean_matches_its_standard_error_and_repeats():
    values = np.random.default_rng(3).normal(size=500)
    low, high = bootstrap(lambda rows: values[rows].mean(), 500)
    half = 1.96 * values.std() / math.sqrt(500)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
    assert (low, high) == bootstrap(lambda rows: values[rows].mean(), 500)


def test_a_statistic_without_a_value_has_no_interval():
    assert bootstrap(lambda rows: np.arange(5.0)[rows].std() / 0.0, 5) is None


def scores_of(tmp_path, rows, **arguments):
    store = Store(tmp_path)
    return store.get(finish(store, rows, **arguments))


def test_one_seed_gets_the_test_sets_interval(tmp_path):
    rows = classification("lora", 1)
    record = scores_of(tmp_path, rows, task="sentiment")
    right = sum(line["prediction"] == line["label"] for line in rows)
    found = pred.over_examples(right / 400, pred.scored(record, "test"))
    assert (found.low, found.high) == wilson(right, 400) and found.covers == OVER_EXAMPLES


NORMS = ("sum", "norm", "bytes", "tokens", "pmi")


def choices(right_of: dict[str, int]) -> list[dict]:
    """400 lines of which the first `right_of[norm]` are right by each norm."""
    lines = classification("lora", 1)
    return [
        {
            **line,
            "prediction": 1 - line["label"],
            **{f"prediction_{norm}": abs(line["label"] - (i >= right)) for norm, right in right_of.items()},
        }
        for i, line in enumerate(lines)
    ]


@pytest.mark.parametrize(("norm", "right"), zip(NORMS, (300, 250, 200, 150, 100), strict=True))
def test_every_accuracy_of_multiple_choice_has_intervals_and_paired_differences(tmp_path, norm, right):
    shares = dict(zip(NORMS, (300, 250, 200, 150, 100), strict=True))
    first = scores_of(tmp_path / "a", choices(shares), task="sentiment")
    second = scores_of(tmp_path / "b", choices(dict.fromkeys(NORMS, 40)), task="sentiment")
    name = f"accuracy_{norm}"
    first.result.metrics["test"][name], second.result.metrics["test"][name] = right / 400, 40 / 400
    found = pred.over_examples(right / 400, pred.scored(first, "test", name))
    assert (found.low, found.high) == wilson(right, 400) and found.covers == OVER_EXAMPLES
    gap = pred.difference({1: pred.scored(first, "test", name)}, {1: pred.scored(second, "test", name)})
    assert gap.value == pytest.approx((right - 40) / 400) and gap.low < gap.value < gap.high


def test_an_accuracy_whose_predictions_are_missing_has_no_interval(tmp_path):
    rows = classification("lora", 1)
    record = scores_of(tmp_path, rows, task="sentiment")
    right = sum(line["prediction"] == line["label"] for line in rows) / 400
    record.result.metrics["test"].update({"accuracy_norm": right, "accuracy_bytes": right})
    # What runs of older versions kept under `prediction` was the choice per character, and no other.
    assert pred.scored(record, "test", "accuracy_norm").is_proportion
    assert pred.scored(record, "test", "accuracy_bytes") is None


def test_one_seed_of_a_correlation_is_close_to_fishers_interval(tmp_path):
    rows = regression("lora", 1, n=1000)
    scores = pred.scored(scores_of(tmp_path, rows), "test")
    r = scores.metric(np.arange(1000))
    found = pred.over_examples(r, scores)
    fisher = np.tanh(np.arctanh(r) + np.array([-1, 1]) * 1.96 / math.sqrt(997))
    assert (found.low, found.high) == pytest.approx(tuple(fisher), abs=0.004)


def test_predictions_that_do_not_give_back_the_metric_are_not_used(tmp_path):
    record = scores_of(tmp_path, regression("lora", 1))
    lines = [json.loads(line) for line in record.file("predictions").read_text().splitlines()]
    lines[0]["prediction"] += 50
    record.file("predictions").write_text("\n".join(json.dumps(line) for line in lines))
    assert pred.scored(record, "test") is None
    found = pred.over_examples(0.5, None)
    assert (found.low, found.high, found.covers) == (None, None, None)


def test_only_the_asked_split_counts(tmp_path):
    rows = regression("lora", 1)
    extra = [{**line, "split": "validation", "prediction": 0.0} for line in rows]
    from report_factory import metric_of

    record = scores_of(tmp_path, rows)
    path = record.file("predictions")
    path.write_text("".join(json.dumps(line) + "\n" for line in [*extra, *rows]))
    scores = pred.scored(record, "test")
    assert len(scores.ids) == 200 and scores.metric(np.arange(200)) == pytest.approx(metric_of(rows, "stsb")[1])


def accuracy_scores(values):
    values = np.array(values, dtype=float)
    return pred.Scored(tuple(map(str, range(len(values)))), lambda rows: values[rows].mean(), True)


def test_paired_difference_is_the_mean_difference_with_the_paired_standard_error():
    generator = np.random.default_rng(1)
    easy = generator.random(800)
    a = {s: accuracy_scores(easy + 0.1 * generator.normal(size=800) < 0.85) for s in (1, 2)}
    b = {s: accuracy_scores(easy + 0.1 * generator.normal(size=800) < 0.80) for s in (1, 2, 3)}
    found = pred.difference(a, b)
    each = [[x[s].metric(np.array([i])) for i in range(800)] for s in (1, 2) for x in (a, b)]
    gaps = (np.array(each[0]) - each[1] + each[2] - each[3]) / 2
    half = 1.96 * gaps.std() / math.sqrt(800)
    assert found.value == pytest.approx(gaps.mean()) and (found.seeds, found.examples) == (2, 800)
    assert (found.low, found.high) == pytest.approx((gaps.mean() - half, gaps.mean() + half), abs=0.15 * half)


def test_no_difference_without_shared_seeds_or_examples():
    one, other = accuracy_scores([1, 0, 1]), accuracy_scores([1, 0])
    assert pred.difference({1: one}, {2: one}) is None and pred.difference({1: one}, {1: other}) is None
