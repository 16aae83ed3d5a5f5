"""Lengths of a split in tokens."""

from dataclasses import dataclass

import numpy as np
from numpy import ndarray


@dataclass(frozen=True)
class Quantiles:
    """Of lengths in tokens: the smallest that half of them and 95 % of them do not exceed, and the largest."""

    p50: int
    p95: int
    max: int


@dataclass(frozen=True)
class Lengths:
    """Tokens of whole examples, and of what comes from the first labelled token on (None: labels are no tokens)."""

    tokens: Quantiles
    answer: Quantiles | None


def lengths_of(tokens: ndarray, answers: ndarray) -> Lengths | None:
    """Return the lengths of a split: tokens (n,), answers (n,) or (0,). None where examples are no tokens."""
    if not len(tokens):
        return None
    return Lengths(_quantiles(tokens), _quantiles(answers) if len(answers) else None)


def _quantiles(values: ndarray) -> Quantiles:
    p50, p95, largest = np.percentile(values, [50, 95, 100], method="inverted_cdf").tolist()
    return Quantiles(int(p50), int(p95), int(largest))
