"""What a method's steps have that others' have not: its own optimizer, groups with other rates, work between steps."""

from collections.abc import Iterable, Sequence

from rowsft.record import Attempt
from rowsft.report.grids import MET, NOT_MET, few
from rowsft.report.rows import Row

# What every run had before records said it.
_BEFORE = "AdamW"


def judged(rows: Sequence[Row]) -> tuple[str, str]:
    """Judge whether one optimizer stepped all rows; what belongs to a method itself is said, and breaks nothing."""
    found = {row.title: sorted({_optimizer(result) for result in row.results}) for row in rows}
    names = sorted({name for own in found.values() for name in own})
    said = _said(rows)
    if len(names) > 1:
        each = few([f"{title}: {' and '.join(own)}" for title, own in found.items()])
        return NOT_MET, "; ".join(filter(None, [each, said]))
    return MET, "; ".join(filter(None, [f"{''.join(names) or _BEFORE} throughout", said]))


def _optimizer(result: Attempt) -> str:
    return result.optimization.optimizer or _BEFORE


def _said(rows: Iterable[Row]) -> str:
    own = {row.title: _own(row.results) for row in rows}
    lines = [f"{title} {text}" for title, text in own.items() if text]
    return f"part of the method: {few(lines)}" if lines else ""


def _own(results: Iterable[Attempt]) -> str:
    """What the steps of one row have of their own; the newest result says it."""
    newest = next(iter(reversed(list(results))), None)
    if newest is None:
        return ""
    groups = newest.optimization.groups or []
    rates = [f"{g.name} at {g.rate_factor:g} times the rate" for g in groups if g.rate_factor not in (None, 1)]
    between = [f"({newest.optimization.between_steps})"] if newest.optimization.between_steps else []
    return " ".join(filter(None, [f"steps {', '.join(rates)}" if rates else "", *between]))
