"""Metrics as `evaluate.Metric` subclasses that lie in the project: `evaluate.load` would fetch them from the hub.

A new metric is one new file here that defines METRIC; its name is the file's name.
"""

import importlib
import pkgutil
import tempfile
from collections.abc import Sequence

import numpy as np

from rowsft.errors import UserError, shortened


def known() -> list[str]:
    """Names of all metrics."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "array_metric")


def check(names: Sequence[str]) -> None:
    """Raise UserError for a name that is no metric; imports nothing heavy."""
    for name in names:
        if name not in known():
            raise UserError(f"metric {shortened(name)}: no such metric; known: {', '.join(known())}")


def compute(names: Sequence[str], predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """Every named metric of `predictions` against `references`, both of shape (examples,)."""
    check(names)
    results = {}
    # evaluate makes a cache folder even for a metric that stays in memory.
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            metric = importlib.import_module(f"{__name__}.{name}").METRIC(cache_dir=scratch, keep_in_memory=True)
            results.update(metric.compute(predictions=predictions.tolist(), references=references.tolist()))
    return results
