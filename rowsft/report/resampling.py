"""The bootstrap over examples, all resamples at once: a metric's values on the same draws for every run.

A resample is how often each example was drawn. For as many examples the draws are the same, so two runs are paired by
subtracting their values.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np

from rowsft import formulas

RESAMPLES = 2000
_FEWEST = 200
#: Resamples times examples that a run may cost: more examples, fewer resamples.
_WORK = 4_000_000
#: Ranks are computed anew for every resample, which is dear.
_RANK_WORK = 600_000


def resamples(n: int, work: int = _WORK) -> int:
    """Return how many resamples of n examples are drawn: RESAMPLES, fewer where they would take too long."""
    return int(np.clip(work // n, _FEWEST, RESAMPLES))


def row_numbers(n: int) -> Iterator[np.ndarray]:
    """Return the draws, the same each time: n row numbers (0..n-1) with replacement, as often as `resamples` says."""
    generator = np.random.default_rng(0)
    for _ in range(resamples(n)):
        yield generator.integers(0, n, n)


def one_by_one(statistic: Callable[[np.ndarray], float], n: int) -> np.ndarray:
    """Return the values of `statistic(row numbers)` on every resample of n examples."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.array([statistic(rows) for rows in row_numbers(n)])


@lru_cache(maxsize=2)
def _counts(n: int) -> np.ndarray:
    """Return (resamples, n): how often each example was drawn."""
    return np.stack([np.bincount(rows, minlength=n) for rows in row_numbers(n)]).astype(np.float32)


def means(values: np.ndarray) -> np.ndarray:
    """Return the mean of `values` (n,) on every resample."""
    values = values.astype(float)
    middle = values.mean()
    # Around the mean, 32 bit are enough.
    return middle + (_counts(len(values)) @ (values - middle).astype(np.float32)).astype(float) / len(values)


def ratios(sums: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return sum(sums) / sum(weights) on every resample; both are (n,). nan where all weights are 0."""
    middle = sums.sum() / weights.sum()
    # Around the whole's ratio, 32 bit are enough.
    columns = np.stack([sums - middle * weights, weights], axis=1).astype(np.float32)
    above, below = (_counts(len(sums)) @ columns).astype(float).T
    with np.errstate(invalid="ignore", divide="ignore"):
        return middle + above / below


def metric(name: str, prediction: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Return the values of a metric of `formulas` on every resample."""
    return _RESAMPLED[formulas.FORMULAS[name]](prediction, label)


def _accuracies(prediction: np.ndarray, label: np.ndarray) -> np.ndarray:
    return means(prediction == label)


def _correlations(prediction: np.ndarray, label: np.ndarray) -> np.ndarray:
    x, y = (_standard(side) for side in (prediction, label))
    sums = _counts(len(x)) @ np.stack([x, y, x * x, y * y, x * y], axis=1).astype(np.float32)
    x, y, xx, yy, xy = sums.T.astype(float) / len(x)
    return _ratio(xy - x * y, (xx - x * x) * (yy - y * y))


def _rank_correlations(prediction: np.ndarray, label: np.ndarray) -> np.ndarray:
    n = len(prediction)
    counts = _counts(n)[: resamples(n, _RANK_WORK)]
    x, y = (_ranks(counts, side) for side in (prediction, label))
    x, y = x - (n + 1) / 2, y - (n + 1) / 2
    weighted = counts * x
    covariance = np.einsum("bn,bn->b", weighted, y)
    spreads = np.einsum("bn,bn->b", weighted, x) * np.einsum("bn,bn,bn->b", counts, y, y)
    return _ratio(covariance.astype(float), spreads.astype(float))


def _ranks(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return (resamples, n): the mean rank, from 1, of every example's value in each resample."""
    _, which = np.unique(values, return_inverse=True)
    order = np.argsort(which, kind="stable")
    starts = np.flatnonzero(np.diff(which[order], prepend=-1))
    tied = np.add.reduceat(counts[:, order], starts, axis=1)
    return (np.cumsum(tied, axis=1) - (tied - 1) / 2)[:, which]


def _class_counts(prediction: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the classes (k,), and on every resample (resamples, k) how often each was right, predicted and true."""
    classes = np.union1d(prediction, label)
    predicted, true = (side[:, None] == classes for side in (prediction, label))
    sums = _counts(len(label)) @ np.concatenate([predicted & true, predicted, true], axis=1).astype(np.float32)
    return classes, *np.split(sums.astype(float), 3, axis=1)


def _f1s(prediction: np.ndarray, label: np.ndarray) -> np.ndarray:
    classes, right, predicted, true = _class_counts(prediction, label)
    seen = predicted + true
    each = 2 * right / np.maximum(seen, 1)
    if formulas.is_binary(classes):
        return each[:, classes == 1].sum(axis=1)
    return each.sum(axis=1) / (seen > 0).sum(axis=1)


def _matthews(prediction: np.ndarray, label: np.ndarray) -> np.ndarray:
    n = len(label)
    _, right, predicted, true = _class_counts(prediction, label)
    spreads = (n**2 - (predicted**2).sum(1)) * (n**2 - (true**2).sum(1))
    return _ratio(n * right.sum(1) - (predicted * true).sum(1), spreads)


def _standard(values: np.ndarray) -> np.ndarray:
    """Return values with mean 0 and deviation 1: sums of them keep their digits."""
    centred = values - values.mean()
    return centred / (centred.std() or 1)


def _ratio(covariance: np.ndarray, spreads: np.ndarray) -> np.ndarray:
    """Return covariance / sqrt(spreads), in -1..1; 0 where a side is constant."""
    able = spreads > 1e-12
    return np.clip(np.where(able, covariance / np.sqrt(np.where(able, spreads, 1)), 0.0), -1, 1)


_RESAMPLED: dict[Callable, Callable] = {
    formulas.accuracy: _accuracies,
    formulas.f1: _f1s,
    formulas.pearson: _correlations,
    formulas.spearman: _rank_correlations,
    formulas.matthews: _matthews,
}
