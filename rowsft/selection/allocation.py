"""How a budget is spent on unit groups: what one more unit of each costs, and how many a number of parameters buys."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rowsft.layers.matrix import LinearLayer, layer_shape
from rowsft.selection.budget import Unit, check_affordable, nearest, spread
from rowsft.selection.groups import UnitGroup, has_trained_bias, layer_counts, parameters


@dataclass(frozen=True)
class HalfUnit(Unit):
    """`count` rows and columns of one layer in turn, a row first; `cost` is a row's, bias entry included."""

    d_out: int = 0

    def total(self, count: int) -> int:
        """Return the parameters of ceil(count/2) rows and floor(count/2) columns: crossing entries count once."""
        rows, columns = _split(count)
        return rows * self.cost + columns * (self.d_out - rows)


def group_units(
    unit_groups: Sequence[UnitGroup], layers: Mapping[str, LinearLayer], train_bias: bool
) -> dict[str, Unit]:
    """Return name of a unit group -> cost of a step; the two groups of a layer in channel both are sized as one."""
    units: dict[str, Unit] = {}
    for group in unit_groups:
        cost = parameters(layers, layer_counts([group], [1]), train_bias)
        if group.name in units:
            units[group.name] = _half(layers[group.name], train_bias)
            continue
        single = len(group.members) == 1
        units[group.name] = Unit(
            cost,
            most=group.size,
            noun=group.noun,
            place="layer" if single else "module",
            # A step of shared rows is many; a size of k rows is meant for each of their layers.
            per_row=len(group.layers) / group.width if group.noun in SHARED else 1.0,
        )
    return units


SHARED = ("shared rows a head", "shared columns")


def steps_of(unit_groups: Sequence[UnitGroup], counts: Mapping[str, int]) -> list[int]:
    """Return the steps of each group for group name -> count. In channel both the odd one is a row."""
    return _dealt(unit_groups, [counts[group.name] for group in unit_groups])


def share_of(
    unit_groups: Sequence[UnitGroup], layers: Mapping[str, LinearLayer], ratio: float, train_bias: bool
) -> tuple[list[int], int]:
    """Return (steps of each group, parameters asked) for a share of all rows, columns or units, in channel both half.

    Counts are the nearest, at least 1 unless ratio is 0.
    """
    exact = [ratio * group.size / (2 if _halved(unit_groups) else 1) for group in unit_groups]
    asked = round(parameters(layers, layer_counts(unit_groups, exact), train_bias))
    return _dealt(unit_groups, [nearest(ratio, group.size) if ratio else 0 for group in unit_groups]), asked


def fit_groups(units: Mapping[str, Unit], params: int, clip: bool, source: str) -> dict[str, int]:
    """Return name of a unit group -> count: as many parameters as fit in `params`, never more, as `budget.fit` does.

    Where steps differ much in size, the coarse ones come first and the fine ones fill the rest evenly:
    heads of channel neurons get the same share as all units, as far as whole heads in every module go (so that a small
    budget goes to hidden units alone); shared rows of q, k and v get what every layer gets, lower blocks first.
    Raises UserError as `rowsft.selection.budget.fit` does.
    """
    check_affordable(units, params, clip, source)
    coarse = {name: unit for name, unit in units.items() if unit.noun in ("heads", SHARED[0])}
    fine = {name: unit for name, unit in units.items() if name not in coarse}
    if not coarse or not fine:
        return spread(units, params)
    if next(iter(coarse.values())).noun == "heads":
        share = min(1.0, params / _everything(units))
        counts = {name: math.floor(share * unit.most) for name, unit in coarse.items()}
    else:
        level = _level(units, params)
        counts = spread(coarse, math.floor(sum(_at(unit, level) for unit in coarse.values())))
    left = params - _spent(coarse, counts)
    for name, unit in coarse.items():
        while left > _everything(fine) and counts[name] < unit.most and unit.cost <= left:
            counts[name] += 1
            left -= unit.cost
    counts |= spread(fine, left)
    return {name: counts[name] for name in units}


def _level(units: Mapping[str, Unit], params: int) -> float:
    """The rows in every layer, not rounded, at which all of `params` is spent."""
    low, high = 0.0, max(unit.most / unit.per_row for unit in units.values())
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(_at(unit, middle) for unit in units.values()) <= params else (low, middle)
    return low


def _at(unit: Unit, level: float) -> float:
    return unit.cost * min(unit.most, level * unit.per_row)


def _spent(units: Mapping[str, Unit], counts: Mapping[str, int]) -> int:
    return sum(unit.total(counts[name]) for name, unit in units.items())


def _everything(units: Mapping[str, Unit]) -> int:
    return sum(unit.total(unit.most) for unit in units.values())


def _half(layer: LinearLayer, train_bias: bool) -> HalfUnit:
    d_out, d_in = layer_shape(layer)
    # Past these nothing is left to train: every row is, or every column.
    most = min(2 * d_out - 1, 2 * d_in)
    return HalfUnit(d_in + has_trained_bias(layer, train_bias), most=most, noun="rows and columns", d_out=d_out)


def _dealt(unit_groups: Sequence[UnitGroup], counts: Sequence[int]) -> list[int]:
    """Counts as they are, in channel both the part of them that the group's axis gets."""
    if not _halved(unit_groups):
        return list(counts)
    return [_split(count)[group.axis == "columns"] for group, count in zip(unit_groups, counts, strict=True)]


def _halved(unit_groups: Sequence[UnitGroup]) -> bool:
    return len({group.name for group in unit_groups}) < len(unit_groups)


def _split(count: int) -> tuple[int, int]:
    return (count + 1) // 2, count // 2
