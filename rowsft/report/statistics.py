"""Means and 95 % intervals: over seeds where there are several, over test examples where there is one."""

from dataclasses import dataclass, replace

import numpy as np

LEVEL = 0.95

OVER_SEEDS = "95 % t interval over seeds"
OVER_EXAMPLES = "95 % test-set interval, one seed"


@dataclass(frozen=True)
class Estimate:
    """A number of `seeds` runs, its 95 % interval (`low`, `high`; None where there is none) and what that covers.

    cut: whether an end of the interval lay outside the metric's range and was put on its border.
    """

    value: float
    low: float | None
    high: float | None
    covers: str | None
    seeds: int
    cut: bool = False

    def within(self, bounds: tuple[float, float] | None) -> "Estimate":
        """Return the same with its interval cut at the range that the metric cannot leave (None: no such range).

        A value outside of it, an accuracy in percent say, is on a scale of its own, whose range is not known.
        """
        if bounds is None or self.low is None or self.high is None or not bounds[0] <= self.value <= bounds[1]:
            return self
        low, high = max(self.low, bounds[0]), min(self.high, bounds[1])
        return replace(self, low=low, high=high, cut=(low, high) != (self.low, self.high))


def over_seeds(values: list[float]) -> Estimate:
    """Return the mean of at least two seeds with Student's t interval: mean ± t(0.975, n-1) s / sqrt(n)."""
    from scipy.special import stdtrit

    mean, spread = float(np.mean(values)), float(np.std(values, ddof=1))
    half = float(stdtrit(len(values) - 1, (1 + LEVEL) / 2)) * spread / len(values) ** 0.5
    return Estimate(mean, mean - half, mean + half, OVER_SEEDS, len(values))


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion (Wilson 1927): inside 0..1 and honest near both ends."""
    from scipy.special import ndtri

    z, share = float(ndtri((1 + LEVEL) / 2)), successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    # At both ends the closed form is exact only up to rounding.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def percentiles(draws: np.ndarray) -> tuple[float, float] | None:
    """Return the percentile-bootstrap interval of a statistic's values on resamples; None when one has no value."""
    if not np.isfinite(draws).all():
        return None
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
