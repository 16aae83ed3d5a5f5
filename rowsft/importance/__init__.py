"""Importance metrics: how much each row of a linear layer matters. One file a family; a new file is found by itself."""

from importlib import import_module
from pkgutil import iter_modules

from rowsft.importance.calibration import as_batches
from rowsft.importance.registry import Context, Metric, metric, register, score_layers, score_weights
from rowsft.importance.seeding import layer_generator

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["Context", "as_batches", "Metric", "layer_generator", "metric", "register", "score_layers", "score_weights"]
