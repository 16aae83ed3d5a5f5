"""Means and 95 % intervals: over seeds where there are several, over test examples where there is one."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
RESAMPLES = 2000

OVER_SEEDS = "95 % t interval over seeds"
OVER_EXAMPLES = "95 % test-set interval, one seed"


@dataclass(frozen=True)
class Estimate:
    """A number of `seeds` runs, its 95 % interval (`low`, `high`; None where there is none) and what that covers."""

    value: float
    low: float | None
    high: float | None
    covers: str | None
    seeds: int


def over_seeds(values: list[float]) -> Estimate:
    """Mean of at least two seeds with Student's t interval: mean ± t(0.975, n-1) s / sqrt(n)."""
    mean, spread = float(np.mean(values)), float(np.std(values, ddof=1))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)) * spread / len(values) ** 0.5
    return Estimate(mean, mean - half, mean + half, OVER_SEEDS, len(values))


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927): it stays inside 0..1 and is honest near both ends."""
    interval = stats.binomtest(successes, n).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap(statistic: Callable[[np.ndarray], float], n: int, seed: int = 0) -> tuple[float, float] | None:
    """Percentile bootstrap: `statistic` of RESAMPLES draws of n row numbers (0..n-1) with replacement.

    None when a draw has no value (a correlation of constant predictions). Same seed, same interval.
    """
    generator = np.random.default_rng(seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        draws = np.array([statistic(generator.integers(0, n, n)) for _ in range(RESAMPLES)])
    if not np.isfinite(draws).all():
        return None
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
