"""How far a number may move: `NAME=LIMIT`, read from the command line and held against a comparison.

step_seconds.median=+10%                  fails if B is more than 10 % above A
memory.train.peak_allocated_bytes=+0      fails if B takes one byte more
test.accuracy=-0.01                       fails if B is more than 0.01 below A
*.flops=0                                 every method's FLOPs: fails if any differs at all
"""

import re
from dataclasses import dataclass
from decimal import Decimal
from fnmatch import fnmatchcase

from rowsft.errors import UserError, shortened
from rowsft.report.compare import units
from rowsft.report.compare.number import Number, exact
from rowsft.report.settings import endings, nearest

WITHIN, OVER, MISSING = "within", "over", "missing"

_AMOUNT = r"(?P<amount>(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d{1,3})?)"
_FORM = re.compile(rf"(?P<name>.+)=(?P<sign>[+-]?){_AMOUNT}(?P<percent>%?)", re.I)


@dataclass(frozen=True)
class Limit:
    """text as it was given; sign "+" bounds a rise, "-" a fall, "" both; amount absolute, or in percent of |A|."""

    text: str
    name: str
    sign: str
    amount: Decimal
    percent: bool

    def allows(self, a: float | int, b: float | int) -> bool:
        """Return whether b is no further from a than the limit, in decimal arithmetic."""
        moved = exact(b) - exact(a)
        allowed = abs(exact(a)) * self.amount / 100 if self.percent else self.amount
        return (self.sign == "-" or moved <= allowed) and (self.sign == "+" or -moved <= allowed)


@dataclass(frozen=True)
class Verdict:
    """What became of one number under a limit: within, over, or missing (not measured on a side), in words."""

    limit: str
    name: str
    outcome: str
    reason: str


def parse(text: str) -> Limit:
    """Read `NAME=[+|-]NUMBER[%]`. Raises UserError for anything else."""
    match = _FORM.fullmatch(text.strip())
    if not match:
        raise UserError(
            f"--max-change {shortened(text)}: expected NAME=LIMIT, the limit a number with an optional sign and %: "
            "step_seconds.median=+10%, test.accuracy=-0.01 or flops=0"
        )
    return Limit(text, match["name"].strip(), match["sign"], Decimal(match["amount"]), bool(match["percent"]))


def judge(limit: Limit, numbers: list[Number]) -> list[Verdict]:
    """Return the limit held against the number it names, or against each that its wildcards match.

    Raises UserError for a name that fits no number, or several without a wildcard, with the candidates.
    """
    return [_verdict(limit, number) for number in _named(limit, numbers)]


def _verdict(limit: Limit, number: Number) -> Verdict:
    a, b = units.amounts(number.name, (number.a, number.b))
    if number.a is None or number.b is None:
        absent = [side for side, value in (("A", number.a), ("B", number.b)) if value is None]
        return Verdict(limit.text, number.name, MISSING, f"not measured in {' and '.join(absent)}")
    outcome = WITHIN if limit.allows(number.a, number.b) else OVER
    moved = f"{units.change(number.name, number.difference)}, {units.percent(number.change_percent)}"
    return Verdict(limit.text, number.name, outcome, f"{a} -> {b} ({moved})")


def _named(limit: Limit, numbers: list[Number]) -> list[Number]:
    wanted = _normal(limit.name)
    if re.search(r"[*?\[]", wanted):
        matching = [number for number in numbers if fnmatchcase(_normal(number.name), wanted)]
        # A CPU has no reserved bytes: `*bytes` means the others, unless it means nothing else.
        matching = [number for number in matching if number.a is not None or number.b is not None] or matching
    else:
        # The whole name before its endings: `seconds.train` is not ambiguous because something.seconds.train exists.
        matching = [number for number in numbers if _normal(number.name) == wanted]
        matching = matching or [
            number for number in numbers if wanted in {_normal(ending) for ending in endings(number.name)}
        ]
        if len(matching) > 1:
            names = ", ".join(number.name for number in matching)
            raise UserError(
                f"--max-change {limit.text}: {limit.name} is the end of {len(matching)} names: {names}; "
                f"give one of them, or *.{limit.name} for all"
            )
    if not matching:
        raise UserError(
            f"--max-change {shortened(limit.text)}: no number is called {shortened(limit.name)}; the nearest: "
            + ", ".join(nearest(limit.name, [number.name for number in numbers]))
        )
    return matching


def _normal(name: str) -> str:
    """Return the name with points for underscores: a run's step_seconds.median is step_seconds_median elsewhere."""
    return name.lower().replace("_", ".")
