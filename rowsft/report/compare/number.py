"""One number on both sides, and by how much it moved."""

import math
from dataclasses import dataclass
from decimal import Decimal

from rowsft.report.predictions import Difference


@dataclass(frozen=True)
class Number:
    """A value on each side, None where it was not measured; units are in the name.

    paired: the difference on the same examples with its interval, for a metric that has one.
    """

    name: str
    a: float | int | None
    b: float | int | None
    paired: Difference | None = None

    @property
    def difference(self) -> float | int | None:
        """b - a; None unless both were measured."""
        if self.a is None or self.b is None:
            return None
        moved = exact(self.b) - exact(self.a)
        return int(moved) if isinstance(self.a, int) and isinstance(self.b, int) else float(moved)

    @property
    def change_percent(self) -> float | None:
        """b - a in percent of |a|; None too where a is 0 and b is not, and beyond every float."""
        if self.a is None or self.b is None or (self.a == 0 and self.b != 0):
            return None
        percent = float(100 * (exact(self.b) - exact(self.a)) / abs(exact(self.a))) if self.a != self.b else 0.0
        return percent if math.isfinite(percent) else None


def exact(value: float | int) -> Decimal:
    """Return the number as it is written: 0.1 is a tenth, so that 0.4 - 0.3 is exactly 0.1."""
    return Decimal(str(value))


def paired_up(
    a: dict[str, float | int | None], b: dict[str, float | int | None], paired: dict[str, Difference]
) -> list[Number]:
    """Return every name of either side, in a's order; one that only b has comes behind the one before it in b."""
    names, before = list(a), None
    for name in b:
        if name not in a:
            names.insert(names.index(before) + 1 if before is not None else 0, name)
        before = name
    return [Number(name, a.get(name), b.get(name), paired.get(name)) for name in names]
