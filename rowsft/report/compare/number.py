"""One number on both sides, and by how much it moved."""

import sys
from dataclasses import dataclass
from fractions import Fraction

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
        """b - a; None unless both were measured, and where it is beyond every float."""
        moved = self._moved
        if moved is None or not fits(moved):
            return None
        return int(moved) if isinstance(self.a, int) and isinstance(self.b, int) else float(moved)

    @property
    def change_percent(self) -> float | None:
        """b - a in percent of |a|; None too where a is 0 and b is not."""
        moved = self._moved
        if moved is None or (self.a == 0 and moved):
            return None
        percent = 100 * moved / abs(exact(self.a)) if moved else Fraction(0)
        return float(percent) if fits(percent) else None

    @property
    def _moved(self) -> Fraction | None:
        return None if self.a is None or self.b is None else exact(self.b) - exact(self.a)


def fits(value: Fraction | int) -> bool:
    """Whether a float can be as large."""
    return abs(value) <= sys.float_info.max


def exact(value: float | int) -> Fraction:
    """The number as it is written: 0.1 is a tenth, so that 0.4 - 0.3 is exactly 0.1."""
    return Fraction(str(value))


def paired_up(
    a: dict[str, float | int | None], b: dict[str, float | int | None], paired: dict[str, Difference]
) -> list[Number]:
    """Every name of either side, in a's order; one that only b has comes behind the one before it in b."""
    names, before = list(a), None
    for name in b:
        if name not in a:
            names.insert(names.index(before) + 1 if before is not None else 0, name)
        before = name
    return [Number(name, a.get(name), b.get(name), paired.get(name)) for name in names]
