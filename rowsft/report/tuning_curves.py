"""Small pictures of a tuning stage: validation metric by learning rate, one picture a method, one line a setting.

Of several alphas each has a line.
"""

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes

from rowsft.output import escape
from rowsft.output.quantities import text
from rowsft.report.drawing import EITHER, dress, figure, svg
from rowsft.report.section import Section
from rowsft.report.settings import short_names
from rowsft.report.tuned import Tuned

#: Lines of a picture that its key can name; of more, the first and the last are named.
_MOST_NAMED = 9
#: Ends of the colour map that can be seen on light and on dark paper alike.
_SHADES = (0.4, 0.85)


@escape.quiet_drawing()
def charts(section: Section) -> list[tuple[str, bytes]]:
    """Return (title, SVG bytes), the chosen rate of every line marked."""
    pictures: dict[str, list[Tuned]] = {}
    lines = section.budgets.series if section.budgets else []
    series = {id(point.row): one.title for one in lines for point in one.points}
    for one in section.tuned.values():
        pictures.setdefault(series.get(id(one.row), one.row.info.title), []).append(one)
    span = _span(section.tuned.values())
    return [(title, _chart(members, section, span)) for title, members in pictures.items()]


def _span(tuned) -> tuple[float, float] | None:
    values = [value for one in tuned for curve in one.curves.values() for _, value in curve if value is not None]
    if not values:
        return None
    room = 0.05 * (max(values) - min(values)) or 0.01
    return min(values) - room, max(values) + room


def _chart(members: list[Tuned], section: Section, span: tuple[float, float] | None) -> bytes:
    names = _names(members, section)
    lines = [(one, alpha, _with(name, alpha)) for one, name in zip(members, names, strict=True) for alpha in one.curves]
    drawn = figure(4.4, 3.1 + 0.18 * min(len(lines), _MOST_NAMED), EITHER)
    axis = drawn.subplots()
    shades = colormaps["plasma"](np.linspace(*_SHADES, len(lines)))
    for number, ((one, alpha, name), shade) in enumerate(zip(lines, shades, strict=True)):
        named = len(lines) <= _MOST_NAMED or number in (0, len(lines) - 1)
        _line(axis, one, alpha, shade, escape.picture(name) if named else None)
    axis.set_xscale("log")
    if span is not None:
        axis.set_ylim(*span)
    axis.set_xlabel("learning rate", color=EITHER.ink, fontsize=11)
    axis.set_ylabel(escape.picture(f"validation {section.table.metric}"), color=EITHER.ink, fontsize=11)
    dress(axis, EITHER)
    if any(name for *_, name in lines):
        axis.legend(
            loc="upper left", bbox_to_anchor=(0, -0.2), fontsize=9, frameon=False, labelcolor=EITHER.ink, ncols=2
        )
    return svg(drawn)


def _names(members: list[Tuned], section: Section) -> list[str]:
    """Return what tells the lines of a picture apart, "rows=4"."""
    values = [section.table.sweep.values(one.row) for one in members]
    names = short_names(section.table.sweep.differs)
    return [", ".join(f"{names[key]}={text(value)}" for key, value in own.items()) for own in values]


def _with(name: str, alpha: float | None) -> str:
    return name if alpha is None else ", ".join(filter(None, [name, f"alpha={alpha:g}"]))


def _line(axis: Axes, one: Tuned, alpha: float | None, shade, name: str | None) -> None:
    known = [(rate, value) for rate, value in one.curves[alpha] if value is not None]
    rates, values = [rate for rate, _ in known], [value for _, value in known]
    axis.plot(rates, values, "-", color=shade, linewidth=1.5, marker=".", markersize=5, label=name)
    if one.way.chosen in rates and alpha == one.alpha:
        at = values[rates.index(one.way.chosen)]
        axis.plot([one.way.chosen], [at], "o", color=shade, markersize=9, markerfacecolor="none", markeredgewidth=1.8)
