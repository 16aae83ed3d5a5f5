"""Per-example predictions of a run, and a metric recomputed from them on any subset of the examples.

A line of predictions.jsonl has `id`, `split` (test where absent), `prediction` and `label`; a number under the metric's
own name (or `correct`, for accuracy) is taken instead where it stands there. Multiple choice has two accuracies:
`prediction` is the option with the best score per character, `prediction_sum` the one with the best score in all.
Means over tokens (loss, perplexity, token_accuracy of responses) come from each example's sum and its number of tokens.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from rowsft.report.statistics import OVER_EXAMPLES, Estimate, bootstrap, wilson
from rowsft.store import Record

#: How far the recomputed metric may lie from the recorded one before the predictions are taken for something else.
TOLERANCE = 1e-3


def accuracy(prediction: np.ndarray, label: np.ndarray) -> float:
    """Share of equal values."""
    return float(np.mean(prediction == label))


def pearson(prediction: np.ndarray, label: np.ndarray) -> float:
    """Pearson's correlation; nan when one side is constant."""
    a, b = prediction - prediction.mean(), label - label.mean()
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def spearman(prediction: np.ndarray, label: np.ndarray) -> float:
    """Pearson's correlation of the ranks, ties averaged."""
    return pearson(stats.rankdata(prediction), stats.rankdata(label))


def matthews(prediction: np.ndarray, label: np.ndarray) -> float:
    """Matthews' correlation over any number of classes (Gorodkin 2004); nan when one side is constant."""
    classes = np.unique(np.concatenate([prediction, label]))
    a, b = (side[:, None] == classes for side in (prediction, label))
    a, b = a - a.mean(0), b - b.mean(0)
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "accuracy_norm": accuracy,
    "accuracy_sum": accuracy,
    "pearson": pearson,
    "spearman": spearman,
    "matthews": matthews,
    "matthews_correlation": matthews,
}
#: Where a metric's predictions stand, if not under `prediction`.
_PREDICTED = {"accuracy_sum": "prediction_sum"}
#: Means over tokens: the key of each example's sum, and what is made of the mean.
_OVER_TOKENS: dict[str, tuple[str, Callable[[float], float]]] = {
    "loss": ("negative_log_likelihood", float),
    "perplexity": ("negative_log_likelihood", lambda mean: math.exp(min(mean, 700.0))),
    "token_accuracy": ("greedy_matches", float),
}


@dataclass(frozen=True)
class Scored:
    """A run's examples of one split, in order of id: `metric(rows)` is the metric of those row numbers."""

    ids: tuple[str, ...]
    metric: Callable[[np.ndarray], float]
    is_proportion: bool


def scored(record: Record, split: str, metric_name: str | None = None) -> Scored | None:
    """The predictions of a run's result, or None when they are absent or do not give back the recorded metric.

    metric_name: None is the primary metric.
    """
    result, path = record.result, record.file("predictions")
    if path is None or not path.exists():
        return None
    name = metric_name or result["primary_metric"]
    lines = [json.loads(line) for line in path.read_text().splitlines() if line]
    lines = sorted((line for line in lines if line.get("split", "test") == split), key=lambda line: str(line["id"]))
    found = _metric(lines, name)
    recorded = ((result.get("metrics") or {}).get(split) or {}).get(name)
    if found is None or recorded is None:
        return None
    metric, is_proportion = found
    with np.errstate(invalid="ignore", divide="ignore"):
        # nan (a constant prediction) fails this comparison too.
        if not abs(metric(np.arange(len(lines))) - recorded) <= TOLERANCE:
            return None
    return Scored(tuple(str(line["id"]) for line in lines), metric, is_proportion)


def over_examples(value: float, scores: Scored | None) -> Estimate:
    """One seed's `value` with the interval that the choice of test examples alone gives (Wilson, else bootstrap)."""
    if scores is None:
        return Estimate(value, None, None, None, 1)
    n = len(scores.ids)
    interval = wilson(round(value * n), n) if scores.is_proportion else bootstrap(scores.metric, n)
    return Estimate(value, *(interval or (None, None)), OVER_EXAMPLES if interval else None, 1)


@dataclass(frozen=True)
class Difference:
    """Mean over shared seeds of (this - reference) on the same examples, with a paired-bootstrap 95 % interval."""

    value: float
    low: float | None
    high: float | None
    seeds: int
    examples: int


def difference(mine: dict[int, Scored], reference: dict[int, Scored]) -> Difference | None:
    """Paired difference of two settings, each {seed: its scored run}; None when they share no seed or no examples.

    Examples are resampled, the same for both and for every seed; the spread over seeds is not in the interval.
    """
    pairs = [(mine[seed], reference[seed]) for seed in sorted(mine.keys() & reference.keys())]
    if not pairs or len({scores.ids for pair in pairs for scores in pair}) != 1 or not pairs[0][0].ids:
        return None
    n = len(pairs[0][0].ids)

    def gap(rows: np.ndarray) -> float:
        return float(np.mean([a.metric(rows) - b.metric(rows) for a, b in pairs]))

    return Difference(gap(np.arange(n)), *(bootstrap(gap, n) or (None, None)), len(pairs), n)


def _metric(lines: list[dict], name: str) -> tuple[Callable[[np.ndarray], float], bool] | None:
    if not lines:
        return None
    for key in (name, "correct") if name == "accuracy" else (name,):
        if all(isinstance(line.get(key), bool | int | float) for line in lines):
            return _mean_of(np.array([line[key] for line in lines], dtype=float))
    if name in _OVER_TOKENS:
        return _mean_over_tokens(lines, *_OVER_TOKENS[name])
    predicted = _PREDICTED.get(name, "prediction")
    if name not in METRICS or any(line.get(predicted) is None or line.get("label") is None for line in lines):
        return None
    prediction, label = (np.array([line[key] for line in lines]) for key in (predicted, "label"))
    return lambda rows: METRICS[name](prediction[rows], label[rows]), METRICS[name] is accuracy


def _mean_over_tokens(
    lines: list[dict], key: str, made: Callable[[float], float]
) -> tuple[Callable[[np.ndarray], float], bool] | None:
    if not all(isinstance(line.get(field), int | float) for line in lines for field in (key, "tokens")):
        return None
    sums, tokens = (np.array([line[field] for line in lines], dtype=float) for field in (key, "tokens"))
    if not (tokens > 0).all():
        return None
    return lambda rows: made(float(sums[rows].sum() / tokens[rows].sum())), False


def _mean_of(values: np.ndarray) -> tuple[Callable[[np.ndarray], float], bool]:
    return lambda rows: float(values[rows].mean()), bool(np.isin(values, (0, 1)).all())
