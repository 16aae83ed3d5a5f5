"""What methods share whose size no budget sets: shapes settle it, or a setting that hardly moves it."""

import logging
from functools import cache
from typing import Any

from rowsft.methods.base import ResolvedMethod
from rowsft.selection.budget import Budget

log = logging.getLogger(__name__)


def of_fixed_size(
    name: str, budget: Budget, values: dict[str, Any], parameters: int, source: str = "fixed by the method"
) -> ResolvedMethod:
    """Return what method `name` is resolved to; a budget that was set is said to count for nothing.

    parameters: what it trains beside the task head. source: what settles that.
    """
    spec = budget.spec()
    if spec.key != "budget.default":
        _warn(
            f"{spec.source} does not apply to method={name}, whose {parameters:,} trainable parameters are {source}; "
            f"reports list it apart; budget.params={parameters} gives other methods as many"
        )
    return ResolvedMethod(values, achieved=parameters, source=source)


@cache
def _warn(text: str) -> None:
    log.warning(text)
