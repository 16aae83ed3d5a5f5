"""Importance metrics: how much each row or column of a linear layer matters. One file a family, found by itself.

May import selection and layers. Must not change the model that it scores, nor know runs and records.
"""

from importlib import import_module
from pkgutil import iter_modules

from rowsft.importance.calibration import Calibration, as_batches
from rowsft.importance.registry import Context, Metric, metric, register, score_layers
from rowsft.importance.seeding import layer_generator

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["Calibration", "Context", "Metric", "as_batches", "layer_generator", "metric", "register", "score_layers"]
