"""When a budget counts as met: one rule for every method, and for the report that judges them. Imports no torch."""

import logging
from functools import cache

#: Trainable parameters may differ from what was asked by this share; two numbers within it are one budget.
TOLERANCE = 0.01

log = logging.getLogger(__name__)


def is_met(asked: int, achieved: int) -> bool:
    """Whether `achieved` parameters meet a budget of `asked`."""
    return abs(achieved / asked - 1) <= TOLERANCE if asked else achieved == 0


def check_met(method: str, source: str, asked: int, achieved: int, why: str) -> None:
    """Warn, once a process, where a method cannot meet its budget; the record keeps both numbers.

    source: the setting that asks (budget.rows=1). why: what keeps the method from coming nearer.
    """
    if is_met(asked, achieved):
        return
    off = f"{100 * (achieved / asked - 1):+.1f} %"
    _warn(
        f"{source} asks for {asked:,} trainable parameters; method={method} trains {achieved:,} ({off}), since {why}. "
        f"More than {100 * TOLERANCE:g} % off is no comparison at equal budgets, and reports say so; "
        f"fix: budget.params={achieved} asks every method for as many, or choose a larger budget"
    )


@cache
def _warn(text: str) -> None:
    log.warning(text)
