"""Per-example predictions of a run, and a metric recomputed from them on any subset of the examples.

A line of predictions.jsonl has `id`, `split` (test where absent), `prediction` and `label`; a number under the metric's
own name (or `correct`, for accuracy) is taken instead where it stands there. Multiple choice has an accuracy for each
normalisation of log-likelihoods: `prediction_bytes` is the option that `accuracy_bytes` goes by, and so on; that of
`accuracy_generated` is -1 where none was named.
A mix of tasks has an accuracy of each (`correct` of the lines of that `task`) and their mean, `accuracy_mean`; of what
was written `accuracy_generated_<task>` and their mean, `accuracy_generated`.
Means over tokens, words or bytes (loss, perplexity, bits_per_byte, token_accuracy of responses and of text) come from
each example's sum and its number of them.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rowsft.formulas import CORRELATIONS_OF_NUMBERS, FORMULAS, accuracy
from rowsft.report import resampling
from rowsft.report.statistics import OVER_EXAMPLES, Estimate, percentiles, wilson
from rowsft.store import Record
from rowsft.store.files import read_regular

#: How far the recomputed metric may lie from the recorded one before the predictions are taken for something else; of a
#: metric beyond 1 as a share of it.
TOLERANCE = 1e-3

# A hundred bytes an example: ten million of them.
_LARGEST_BYTES = 2**30

#: Metrics whose predictions stand under a name of their own. accuracy_norm's stood under `prediction` in older runs.
_OWN_PREDICTIONS = {
    f"accuracy_{name}": f"prediction_{name}" for name in ("sum", "norm", "bytes", "tokens", "pmi", "generated")
}
#: Means of a mix in which every task counts alike.
_OVER_TASKS = ("accuracy_mean", "accuracy_generated")
#: Means over tokens, words or bytes: the keys of each example's sum and of its number, and what is made of the mean.
_MEANS: dict[str, tuple[str, str, Callable[[float], float]]] = {
    "loss": ("negative_log_likelihood", "tokens", float),
    "perplexity": ("negative_log_likelihood", "tokens", lambda mean: math.exp(min(mean, 700.0))),
    "word_perplexity": ("negative_log_likelihood", "words", lambda mean: math.exp(min(mean, 700.0))),
    "bits_per_byte": ("negative_log_likelihood", "bytes", lambda mean: mean / math.log(2)),
    "token_accuracy": ("greedy_matches", "tokens", float),
}


@dataclass(frozen=True)
class Scored:
    """A run's examples of one split, in order of id: `metric(rows)` is the metric of those row numbers.

    resampled: the metric on all resamples of the bootstrap at once, where that is faster than one by one.
    """

    ids: tuple[str, ...]
    metric: Callable[[np.ndarray], float]
    is_proportion: bool
    resampled: Callable[[], np.ndarray] | None = None

    @cached_property
    def draws(self) -> np.ndarray:
        """The metric on every resample of the examples, the same resamples for every run (resampling.py)."""
        return self.resampled() if self.resampled else resampling.one_by_one(self.metric, len(self.ids))


def scored(record: Record, split: str, metric_name: str | None = None) -> Scored | None:
    """Return the predictions of a run's result, or None when they are absent or do not give back the recorded metric.

    metric_name: None is the primary metric.
    """
    name = metric_name or (record.result.primary_metric if record.result else None) or ""
    return scored_as(record, split, [name]).get(name)


def scored_as(record: Record, split: str, names: Iterable[str]) -> dict[str, Scored | None]:
    """Return the same by each of these metrics; empty where a run has no predictions."""
    result, path = record.result, record.file("predictions")
    if result is None or path is None or not path.exists():
        return {}
    lines = [line for line in read_lines(path) if line.get("split", "test") == split]
    recorded = result.metrics.get(split) or {}
    return {name: scored_lines(lines, name, recorded.get(name)) for name in names}


def read_lines(path: Path) -> list[dict]:
    """Return the lines of a file of examples. Parsed in one go: a store holds millions of them."""
    text = read_regular(path, _LARGEST_BYTES).decode()
    return json.loads("[" + ",".join(line for line in text.split("\n") if line.strip()) + "]")


def scored_lines(lines: list[dict], name: str, recorded: float | None) -> Scored | None:
    """Return examples with the metric of that name, or None when they do not give back the recorded one."""
    lines = _of_task(lines, name)
    ids, order = _in_order([str(line["id"]) for line in lines])
    recomputed = _metric([lines[index] for index in order], name)
    if recomputed is None or recorded is None:
        return None
    metric, is_proportion, resampled = recomputed
    with np.errstate(invalid="ignore", divide="ignore"):
        # nan (a prediction that is no number) fails this comparison too.
        if not abs(metric(np.arange(len(lines))) - recorded) <= TOLERANCE * max(1.0, abs(recorded)):
            return None
    return Scored(ids, metric, is_proportion, resampled)


def over_examples(value: float, scores: Scored | None) -> Estimate:
    """Return one seed's `value` with the interval that the choice of test examples gives (Wilson, else bootstrap)."""
    if scores is None:
        return Estimate(value, None, None, None, 1)
    n = len(scores.ids)
    interval = wilson(round(value * n), n) if scores.is_proportion else percentiles(scores.draws)
    low, high = interval or (None, None)
    return Estimate(value, low, high, OVER_EXAMPLES if interval else None, 1)


@dataclass(frozen=True)
class Difference:
    """Mean over shared seeds of (this - reference) on the same examples, with a paired-bootstrap 95 % interval."""

    value: float
    low: float | None
    high: float | None
    seeds: int
    examples: int


def flat_difference(name: str, pair: Difference | None) -> dict[str, float | None]:
    """Return a difference as columns of a CSV file that begin with its name."""
    parts = {f"{name}_{part}": getattr(pair, part, None) for part in ("low", "high", "seeds", "examples")}
    return {name: getattr(pair, "value", None), **parts}


def difference(mine: Mapping[Any, Scored], reference: Mapping[Any, Scored]) -> Difference | None:
    """Pair two settings, each {seed: its scored run}; return None when they share no seed or no examples.

    Examples are resampled, the same for both and for every seed; the spread over seeds is not in the interval.
    """
    pairs = [(mine[seed], reference[seed]) for seed in sorted(mine.keys() & reference.keys(), key=str)]
    if not pairs or not pairs[0][0].ids or any(scores.ids != pairs[0][0].ids for pair in pairs for scores in pair):
        return None
    n = len(pairs[0][0].ids)
    every = np.arange(n)
    value = float(np.mean([a.metric(every) - b.metric(every) for a, b in pairs]))
    gaps = np.mean([_gaps(a.draws, b.draws) for a, b in pairs], axis=0)
    low, high = percentiles(gaps) or (None, None)
    return Difference(value, low, high, len(pairs), n)


def _gaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    # Where one has fewer resamples, they are the first of the other's.
    fewer = min(len(a), len(b))
    return a[:fewer] - b[:fewer]


_orders: dict[int, tuple[list[str], tuple[str, ...], list[int]]] = {}


def _in_order(ids: list[str]) -> tuple[tuple[str, ...], list[int]]:
    """Return (the ids sorted, the places they stood at); the runs of a table share one and the same tuple of ids."""
    key = hash(tuple(ids))
    known = _orders.get(key)
    if known is None or known[0] != ids:
        order = sorted(range(len(ids)), key=ids.__getitem__)
        known = _orders[key] = (ids, tuple(ids[index] for index in order), order)
    return known[1], known[2]


def _metric(lines: list[dict], name: str) -> tuple[Callable, bool, Callable] | None:
    """Return (the metric of row numbers, whether it is a share of examples, the metric on all resamples)."""
    if not lines:
        return None
    for key in (name, "correct") if name == "accuracy" else (name,):
        if all(isinstance(line.get(key), bool | int | float) for line in lines):
            return _mean_of(np.array([line[key] for line in lines], dtype=float))
    if name in _MEANS:
        return _mean_over(lines, *_MEANS[name])
    if all("task" in line and "correct" in line for line in lines):
        return _mean_over_tasks(lines, name)
    predicted = _OWN_PREDICTIONS.get(name, "prediction")
    if name == "accuracy_norm" and predicted not in lines[0]:
        predicted = "prediction"
    if name not in FORMULAS or any(line.get(predicted) is None or line.get("label") is None for line in lines):
        return None
    formula = FORMULAS[name]
    sides = [[line[key] for line in lines] for key in (predicted, "label")]
    if any(isinstance(value, str) for side in sides for value in side):
        if formula in CORRELATIONS_OF_NUMBERS:
            return None
        sides = _numbered(sides)
    prediction, label = (np.array(side) for side in sides)
    return (
        lambda rows: formula(prediction[rows], label[rows]),
        formula is accuracy,
        lambda: resampling.metric(name, prediction, label),
    )


def _numbered(sides: list[list]) -> list[list[int]]:
    """Return texts as numbers, equal ones the same: an array of texts gives each as much room as the longest takes.

    From 2 on, since 0 and 1 alone would be two classes of which 1 is the one to find.
    """
    if not all(isinstance(value, str | int | float) for side in sides for value in side):
        raise TypeError("predictions and labels are neither texts nor numbers")
    texts = [[str(value) for value in side] for side in sides]
    number = {text: place for place, text in enumerate(sorted({*texts[0], *texts[1]}), start=2)}
    return [[number[text] for text in side] for side in texts]


def _mean_of(values: np.ndarray) -> tuple[Callable, bool, Callable]:
    is_proportion = bool(np.isin(values, (0, 1)).all())
    return lambda rows: float(values[rows].mean()), is_proportion, lambda: resampling.means(values)


def _of_task(lines: list[dict], name: str) -> list[dict]:
    """The lines that a metric of a mix is about: those of one task, where it is that task's alone."""
    if name in _OVER_TASKS or not all("task" in line and "correct" in line for line in lines):
        return lines
    own = [line for line in lines if name in (f"accuracy_{line['task']}", f"accuracy_generated_{line['task']}")]
    return own or lines


def _mean_over_tasks(lines: list[dict], name: str) -> tuple[Callable, bool, Callable] | None:
    """The share of right lines of one task, or the mean of the tasks' shares."""
    written = name.startswith("accuracy_generated")
    mean, prefix = ("accuracy_generated", "accuracy_generated_") if written else ("accuracy_mean", "accuracy_")
    names = [task for task in sorted({line["task"] for line in lines}) if name in (mean, f"{prefix}{task}")]
    if not names or (written and any("prediction_generated" not in line for line in lines)):
        return None
    right = (line["prediction_generated"] == line["label"] if written else line["correct"] for line in lines)
    hits = np.array(list(right), dtype=float)
    if name not in _OVER_TASKS:
        # The lines are those of the task.
        return _mean_of(hits)
    of_task = [np.array([line["task"] == name for line in lines], dtype=float) for name in names]
    return (
        lambda rows: float(np.mean([hits[rows] @ of[rows] / of[rows].sum() for of in of_task])),
        False,
        lambda: _finite(np.mean([resampling.ratios(hits * of, of) for of in of_task], axis=0)),
    )


def _finite(values: np.ndarray) -> np.ndarray:
    """The resamples that have an example of every task, where most do: a task of few examples misses some."""
    has = np.isfinite(values)
    return values[has] if has.mean() > 0.5 else values


def _mean_over(
    lines: list[dict], key: str, number: str, made: Callable[[float], float]
) -> tuple[Callable, bool, Callable] | None:
    if not all(isinstance(line.get(field), int | float) for line in lines for field in (key, number)):
        return None
    sums, numbers = (np.array([line[field] for line in lines], dtype=float) for field in (key, number))
    if not (numbers > 0).all():
        return None
    return (
        lambda rows: made(float(sums[rows].sum() / numbers[rows].sum())),
        False,
        lambda: np.array([made(mean) for mean in resampling.ratios(sums, numbers)]),
    )
