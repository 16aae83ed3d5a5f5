"""Pictures of a table's lines over budgets: one quantity against trainable parameters, with bands."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from rowsft.output import escape
from rowsft.output.quantities import count
from rowsft.report.apart import apart
from rowsft.report.budgets import Budgets, Quantity, Series
from rowsft.report.drawing import EITHER, dress, figure, key_beneath, svg
from rowsft.report.rows import Row
from rowsft.report.statistics import Estimate
from rowsft.report.style import looks

#: Of one method's lines: their colour is the same.
_STROKES = ("-", "--", ":", "-.")
_MARKERS = ("o", "^", "v", "P")


@escape.quiet_drawing()
def charts(found: Budgets) -> list[tuple[str, bytes]]:
    """Return (caption, SVG bytes) of each quantity, every line with a band."""
    return [(caption(found, quantity), _chart(found, quantity)) for quantity in found.quantities]


def caption(found: Budgets, quantity: Quantity) -> str:
    """Return what a picture shows, and what its bands are."""
    read = (quantity.read(point.row) for one in found.series for point in one.points)
    covers = sorted({estimate.covers for estimate in read if estimate and estimate.covers})
    unit = f" ({quantity.unit})" if quantity.unit else ""
    return f"{quantity.title}{unit}; bands: {', '.join(covers) or 'none, one seed'}"


def _chart(found: Budgets, quantity: Quantity) -> bytes:
    drawn = figure(5.2, 3.5 + 0.19 * (len(found.series) + len(found.levels)), EITHER)
    axis = drawn.subplots()
    colours = looks(found.table.infos)
    seen: dict[str, int] = {}
    for one in found.series:
        place = seen.setdefault(one.method, 0) % len(_STROKES)
        seen[one.method] += 1
        _line(axis, one, quantity, colours[one.method][0], place)
    for row in found.levels:
        if (estimate := quantity.read(row)) is not None:
            _level(axis, row, estimate.value, *colours[row.method])
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    axis.set_xlabel("trainable parameters, the head's left out", color=EITHER.ink, fontsize=11)
    unit = f" ({quantity.unit})" if quantity.unit else ""
    axis.set_ylabel(escape.picture(f"{quantity.title}{unit}"), color=EITHER.ink, fontsize=11)
    dress(axis, EITHER)
    key_beneath(axis, EITHER)
    return svg(drawn)


def _level(axis: Axes, row: Row, value: float, colour: str, marker: str) -> None:
    """A row without a budget: a point where the method fixes its size, else a level."""
    if apart([row]):
        size = row.results[0].parameters.adapter or 0
        axis.plot([size], [value], marker, color=colour, label=escape.picture(f"{row.title} (size fixed)"))
        return
    look: dict[str, Any] = {"color": colour, "linestyle": (0, (1, 2)), "linewidth": 1.4}
    axis.axhline(value, label=escape.picture(f"{row.title} (no budget)"), **look)


def _line(axis: Axes, one: Series, quantity: Quantity, colour: str, place: int) -> None:
    points: list[tuple[int, Estimate]] = [
        (point.parameters, estimate) for point in one.points if (estimate := quantity.read(point.row)) is not None
    ]
    if not points:
        return
    sizes = [size for size, _ in points]
    values = [estimate.value for _, estimate in points]
    look: dict[str, Any] = {"color": colour, "linewidth": 1.8, "marker": _MARKERS[place], "markersize": 5}
    axis.plot(sizes, values, _STROKES[place], label=escape.picture(one.title), **look)
    low = [estimate.value if estimate.low is None else estimate.low for _, estimate in points]
    high = [estimate.value if estimate.high is None else estimate.high for _, estimate in points]
    axis.fill_between(sizes, low, high, color=colour, alpha=0.13, linewidth=0)
