"""A budget as counts of rows or ranks, layer by layer, for the methods that have such counts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import get_type_hints

from torch import nn

from rowsft.config import typed
from rowsft.errors import UserError
from rowsft.methods.base import method_class
from rowsft.selection.budget import Budget, BudgetSpec, Unit, fit, proportional, row_units, uniform
from rowsft.selection.targets import Targets, eligible_layers


def like_parameters(like: Mapping, source: str, clip: bool, model: nn.Module, targets: Targets) -> int:
    """Return the trainable parameters of another method's setting, {method: lora, r: 8}, by its own counting.

    Raises UserError for an unknown method or setting, and for a setting without a size.
    """
    settings = dict(like)
    chosen = method_class(settings.pop("method"), f"{source}: method")
    hints, sizes = get_type_hints(chosen), chosen.info.sizes
    known = [item.name for item in fields(chosen) if item.init and item.name != "name"]
    for key in settings:
        if key not in known:
            raise UserError(f"{source}: {key} is no setting of {chosen.name}; use some of {', '.join(known)}")
        typed.check(f"{source}: {key}", settings[key], hints[key], f"conf/method/{chosen.name}.yaml")
    if sizes and all(settings.get(size) is None for size in sizes):
        raise UserError(f"{source}: no size is given; add {' or '.join(sizes)}")
    return chosen(**settings).solve(Budget(clip=clip), model, targets).achieved


def counts_for(
    units: dict[str, Unit],
    spec: BudgetSpec,
    native: Sequence[str],
    clip: bool,
    model: nn.Module,
    targets: Targets,
    fit: Callable[..., dict[str, int]] = fit,
) -> tuple[dict[str, int], int]:
    """Solve a budget for a method: (name of each of `units` -> count, parameters asked).

    `native` are the budget keys that set the method's counts directly; any other becomes a number of parameters first,
    rows and ratio by what row-SFT would train, biases along. fit: spends such a number, as
    `rowsft.selection.budget.fit` does.
    """
    if spec.kind in native:
        return proportional(units, spec.value) if spec.kind == "ratio" else uniform(units, spec, clip)
    if spec.kind == "params":
        asked = spec.value
    elif spec.kind == "like":
        asked = like_parameters(spec.value, spec.source, clip, model, targets)
    else:
        rows = row_units(eligible_layers(model, targets))
        counts, _ = proportional(rows, spec.value) if spec.kind == "ratio" else uniform(rows, spec, clip)
        asked = sum(rows[name].total(count) for name, count in counts.items())
    return fit(units, asked, clip, spec.source), asked
