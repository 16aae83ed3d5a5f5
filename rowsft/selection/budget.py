"""The size of what is trained, and the arithmetic that turns it into counts of rows or ranks per layer."""

import bisect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rowsft.errors import UserError
from rowsft.layers.matrix import LinearLayer, layer_shape
from rowsft.selection.channel import SCOPES

# More than any layer has.
UNLIMITED = 2**62
BUDGET_KEYS = ("rows", "ratio", "params", "like")


@dataclass(frozen=True)
class BudgetSpec:
    """The one size that is set: its kind (of `BUDGET_KEYS`), its value, the setting it was read from (budget.rows)."""

    kind: str
    value: Any
    key: str

    @property
    def source(self) -> str:
        """The setting with its value, as records and errors show it."""
        value = self.value if self.key.endswith(self.kind) else {self.kind: self.value}
        return f"{self.key}={_plain(value)}"


@dataclass(frozen=True)
class Budget:
    """How much is trained, the task head not counted. At most one of the first four is set; with none, `default` holds.

    rows: rows (columns, coupled units) in every eligible layer. ratio: share of each layer's, 0 to 1. params: trainable
    parameters in total. like: the parameters of another method's setting, {method: lora, r: 8}. default: {key: value},
    used when none is set. scope: "layer" (each layer chooses its own) or "global" (one threshold over all layers), for
    methods that choose. clip: take all there is where more is asked, instead of refusing.

    Raises UserError for two sizes, a value out of range, or an unknown scope.
    """

    rows: int | None = None
    ratio: float | None = None
    params: int | None = None
    like: Mapping[str, Any] | None = None
    default: Mapping[str, Any] = field(default_factory=lambda: {"like": {"method": "lora", "r": 8}})
    scope: str = "layer"
    clip: bool = False

    def __post_init__(self):
        given = [kind for kind in BUDGET_KEYS if getattr(self, kind) is not None]
        if len(given) > 1:
            named = " and ".join(f"budget.{kind}={getattr(self, kind)}" for kind in given)
            raise UserError(f"{named} are set together; expected one size: set the others to null")
        if self.scope not in SCOPES:
            raise UserError(f"budget.scope={self.scope}: unknown; use one of {', '.join(SCOPES)}")
        if not isinstance(self.clip, bool):
            raise UserError(f"budget.clip={self.clip}: expected true or false")
        check_spec(self.spec())

    def spec(self) -> BudgetSpec:
        """Return the spec that holds."""
        for kind in BUDGET_KEYS:
            if getattr(self, kind) is not None:
                return BudgetSpec(kind, getattr(self, kind), f"budget.{kind}")
        if len(self.default) != 1 or next(iter(self.default)) not in BUDGET_KEYS:
            raise UserError(
                f"budget.default={_plain(self.default)}: expected one of {', '.join(BUDGET_KEYS)} with its value"
            )
        kind, value = next(iter(self.default.items()))
        return BudgetSpec(kind, value, "budget.default")


@dataclass(frozen=True)
class Unit:
    """What one more row (or rank) of a layer costs in parameters.

    first: what the first one costs on top (DoRA's magnitude vector). most: how many there can be.
    noun, place: what errors call them, and what holds them. per_row: how many a size of one row in every layer means;
    below 1 where one of them is a bundle of rows.
    """

    cost: int
    first: int = 0
    most: int = UNLIMITED
    noun: str = "rows"
    place: str = "layer"
    per_row: float = 1.0

    def total(self, count: int) -> int:
        """Return the parameters of `count` of them."""
        return count * self.cost + (self.first if count else 0)

    def capped(self, count: int) -> int:
        """Return `count`, or as many as there are."""
        return min(count, self.most)


def row_units(layers: Mapping[str, LinearLayer], train_bias: bool = True) -> dict[str, Unit]:
    """Return the cost of a row of each layer: d_in, one more where its bias is trained along; at most d_out rows."""
    units = {}
    for name, layer in layers.items():
        d_out, d_in = layer_shape(layer)
        units[name] = Unit(d_in + (train_bias and layer.bias is not None), most=d_out)
    return units


def uniform(
    units: Mapping[str, Unit], spec: BudgetSpec, clip: bool, instead: str = "set budget.clip=true"
) -> tuple[dict[str, int], int]:
    """Return the spec's count in every layer, and the parameters asked. A bundle of rows takes the nearest, at least 1.

    Raises UserError where a layer has fewer; `instead` is what the message suggests besides a lower number.
    """
    wanted = {
        name: spec.value if unit.per_row == 1 else nearest(unit.per_row, spec.value) for name, unit in units.items()
    }
    for name, unit in units.items():
        if unit.capped(wanted[name]) < wanted[name] and not clip:
            raise UserError(
                f"{spec.kind}={spec.value} exceeds {unit.place} {name} ({unit.most} {unit.noun}); "
                f"lower {spec.key} or {instead}"
            )
    asked = sum(
        unit.total(spec.value) if unit.per_row == 1 else spec.value * unit.per_row * unit.cost
        for unit in units.values()
    )
    return {name: unit.capped(wanted[name]) for name, unit in units.items()}, round(asked)


def proportional(units: Mapping[str, Unit], ratio: float) -> tuple[dict[str, int], int]:
    """Return the nearest count to `ratio` of every layer, at least 1 unless ratio is 0, and the parameters asked."""
    counts = {name: nearest(ratio, unit.most) if ratio else 0 for name, unit in units.items()}
    return counts, round(sum(ratio * unit.most * unit.cost for unit in units.values()))


def nearest(ratio: float, most: int) -> int:
    """Return the whole number nearest to `ratio` of `most`, at least 1."""
    return max(1, int(ratio * most + 0.5))


def fit(units: Mapping[str, Unit], params: int, clip: bool, source: str) -> dict[str, int]:
    """Return layer name -> count: as many parameters as fit in `params`, as evenly as possible, never more.

    Raises UserError when not even one fits, or when all there is falls short of `params` and `clip` is not set.
    """
    check_affordable(units, params, clip, source)
    return spread(units, params)


def check_affordable(units: Mapping[str, Unit], params: int, clip: bool, source: str) -> None:
    """Raise UserError when `params` buys nothing, or more than there is and `clip` is not set."""
    cheapest = min(units, key=lambda name: units[name].total(1))
    if params < units[cheapest].total(1):
        raise UserError(
            f"{source} allows {params} parameters, less than the {units[cheapest].total(1)} that the smallest step "
            f"costs ({units[cheapest].place} {cheapest}); raise the budget"
        )
    if all(unit.most < UNLIMITED for unit in units.values()):
        everything = sum(unit.total(unit.most) for unit in units.values())
        if params > everything and not clip:
            nouns = {unit.noun for unit in units.values()}
            noun = nouns.pop() if len(nouns) == 1 else "units"
            raise UserError(
                f"{source} asks for {params} parameters, but all {noun} of the {len(units)} layers "
                f"have {everything}; lower the budget or set budget.clip=true"
            )


def spread(units: Mapping[str, Unit], params: int) -> dict[str, int]:
    """Return the largest count that every layer can have within `params`, maybe 0; a smaller layer gives what it has.

    Then one more layer by layer in the model's order while it fits: counts differ by one at most, but for layers that
    have no more.
    """

    def evenly(count: int) -> int:
        return sum(unit.total(unit.capped(count)) for unit in units.values())

    # A limit of `params` is safe: a count costs at least one parameter each.
    limit = max(min(unit.most, params) for unit in units.values())
    base = bisect.bisect_right(range(limit + 1), params, key=evenly) - 1
    counts = {name: unit.capped(base) for name, unit in units.items()}
    left = params - evenly(base)
    for name, unit in units.items():
        step = unit.total(unit.capped(base + 1)) - unit.total(counts[name])
        if 0 < step <= left:
            counts[name] += 1
            left -= step
    return counts


def check_spec(spec: BudgetSpec) -> None:
    """Raise UserError for a value that its kind of spec cannot have."""
    value = spec.value
    if spec.kind in ("rows", "params", "r") and not (_is_int(value) and value > 0):
        raise UserError(f"{spec.source}: expected a whole number above 0")
    if spec.kind == "ratio" and not (
        isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
    ):
        raise UserError(f"{spec.source}: expected a share from 0 to 1")
    if spec.kind == "like" and not (isinstance(value, Mapping) and "method" in value):
        raise UserError(f"{spec.source}: expected a method and its size, such as {{method: lora, r: 8}}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _plain(value: object) -> object:
    """Mappings shown as YAML shows them, {method: lora, r: 8}."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_plain(inner)}" for key, inner in value.items()) + "}"
    return value
