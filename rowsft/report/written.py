"""Estimates and differences as a reader sees them."""

from rowsft.output.quantities import NONE
from rowsft.report.predictions import Difference
from rowsft.report.statistics import OVER_EXAMPLES, Estimate


def estimated(estimate: Estimate | None, digits: int = 4, intervals: bool = True) -> str:
    """Return an estimate to so many digits after the point, with its interval: ± where symmetric, else [low, high]."""
    if estimate is None:
        return NONE
    value, low, high = estimate.value, estimate.low, estimate.high
    if low is None or high is None or not intervals:
        return f"{value:.{digits}f}"
    if estimate.covers == OVER_EXAMPLES or estimate.cut:
        return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{value:.{digits}f} ± {high - value:.{digits}f}"


def paired(difference: Difference | None) -> str:
    """Return a paired difference with its sign and interval."""
    if difference is None:
        return NONE
    low, high = difference.low, difference.high
    interval = f" [{low:+.4f}, {high:+.4f}]" if low is not None and high is not None else ""
    return f"{difference.value:+.4f}{interval}"
