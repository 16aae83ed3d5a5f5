"""The picture: primary metric against training's peak memory, one panel a table, labels that never overlap.

A panel of a few points names each, one of more numbers them, one of very many names the best of each method.
"""

import math
from dataclasses import dataclass
from functools import cached_property

from matplotlib.axes import Axes

from rowsft.formulas import bounds
from rowsft.output import escape
from rowsft.output.quantities import MIB
from rowsft.report.drawing import DARK, LIGHT, Theme, dress, figure, key_beneath, png
from rowsft.report.labels import Point, place
from rowsft.report.section import Section
from rowsft.report.style import looks
from rowsft.report.tables import heading

__all__ = ["DARK", "LIGHT", "Panel", "accuracy_vs_memory"]

_PANEL_INCHES = (6.4, 4.4)
_KEY_LINE_INCHES = 0.19
#: More names than this, or longer ones, do not fit a panel: the points are numbered and a key beneath has the names.
_MOST_NAMES = 7
_LONGEST_NAME = 24
#: From this many points on, neither names nor numbers nor intervals can be read.
_CROWDED_FROM = 41
#: More would take minutes to lay out and more pixels than a picture can have.
_MOST_PANELS = 12


@escape.quiet_drawing()
def accuracy_vs_memory(sections: list[Section], theme: Theme = LIGHT) -> bytes | None:
    """Draw two panels a row; return PNG bytes, None when no run has both a metric and a measured training peak.

    Of a store with many tables the first ones are drawn, and the picture says so.
    """
    panels = [panel for panel in map(Panel, sections) if panel.points]
    if not panels:
        return None
    shown = panels[:_MOST_PANELS]
    columns = min(2, len(shown))
    rows = -(-len(shown) // columns)
    key_inches = _KEY_LINE_INCHES * max(panel.key_lines for panel in shown)
    drawn = figure(_PANEL_INCHES[0] * columns, (_PANEL_INCHES[1] + key_inches) * rows, theme)
    axes = drawn.subplots(rows, columns, squeeze=False).flatten()
    for axis, panel in zip(axes, shown, strict=False):
        panel.draw(axis, theme)
    for axis in axes[len(shown) :]:
        axis.set_visible(False)
    if len(panels) > len(shown):
        count = f"the first {len(shown)} of {len(panels)} tables"
        drawn.supxlabel(f"{count}; rowsft report --experiment NAME draws others", color=theme.ink, fontsize=11)
    drawn.draw_without_rendering()
    for axis, panel in zip(axes, shown, strict=False):
        place(axis, panel.labelled, theme.ink)
    return png(drawn)


@dataclass(frozen=True)
class _Marked(Point):
    """A point of the picture with the row that it stands for."""

    method: str
    marker: str
    has_interval: bool


class Panel:
    """A section's points and how many of them can be told apart."""

    def __init__(self, section: Section):
        self.table = section.table
        shown = looks(section.table.infos)
        self.points = []
        for line in section.lines:
            estimate, peak = line.estimate, line.train_peak_allocated_bytes
            if estimate is None or peak is None:
                continue
            low, high = (estimate.value if end is None else end for end in (estimate.low, estimate.high))
            colour, marker = shown[line.method]
            where = (peak / MIB, estimate.value, low, high)
            self.points.append(_Marked(line.title, *where, colour, line.method, marker, estimate.low is not None))
        untrained = {method for method, info in section.table.infos.items() if not info.trains}
        self.untrained = next((line.value for line in section.lines if line.method in untrained), None)
        # Lines over budgets have pictures of their own, where each of their points can be found.
        self.crowded = len(self.points) >= (_MOST_NAMES if section.budgets else _CROWDED_FROM)
        long = any(len(point.name) > _LONGEST_NAME for point in self.points)
        self.numbered = not self.crowded and (len(self.points) > _MOST_NAMES or long)

    @cached_property
    def by_method(self) -> dict[str, list[_Marked]]:
        """The points of each method."""
        members: dict[str, list[_Marked]] = {}
        for point in self.points:
            members.setdefault(point.method, []).append(point)
        return members

    @property
    def key_lines(self) -> int:
        """Lines of the key beneath the panel."""
        return len(self.by_method) if self.crowded else len(self.points) * self.numbered

    @property
    def labelled(self) -> list[Point]:
        """The points that are named in the panel, each under its number where there is a key."""
        pick = max if self.table.higher_is_better else min
        points = [pick(members, key=lambda point: point.y) for members in self.by_method.values()]
        return [
            Point(
                str(number) if self.numbered else escape.picture(point.name),
                point.x,
                point.y,
                *((point.y, point.y) if self.crowded else (point.low, point.high)),
                point.colour,
            )
            for number, point in enumerate(points if self.crowded else self.points, start=1)
        ]

    def limits(self) -> tuple[float, float]:
        """Return the ends of the axis: all values, and of intervals what does not squeeze the values together.

        Two seeds have intervals of twelve standard errors, next to which differences of values would be invisible.
        """
        values = [point.y for point in self.points]
        low, high = min(values), max(values)
        # Of one value, or equal ones, nothing is squeezed.
        reach = 1.5 * max(high - low, 0.02 * abs(high), 1e-6) if high > low else math.inf
        if not self.crowded:
            low = max(min(point.low for point in self.points), low - reach)
            high = min(max(point.high for point in self.points), high + reach)
        room = 0.12 * (high - low or 0.02 * abs(high) or 1e-3)
        limits = bounds(self.table.metric)
        if limits is None or not all(limits[0] <= value <= limits[1] for value in values):
            limits = (low, high)
        # A little beyond the metric's range: a marker on the border is seen whole.
        return max(low - room, limits[0] - room), min(high + room, limits[1] + room)

    def draw(self, axis: Axes, theme: Theme) -> None:
        """Draw everything but the names of points."""
        (self._clouds if self.crowded else self._markers)(axis, theme)
        if self.key_lines:
            key_beneath(axis, theme)
        axis.margins(x=0.2)
        axis.set_xlim(left=max(0, axis.get_xlim()[0]))
        axis.set_ylim(*self.limits())
        self._untrained_line(axis, theme)
        dress(axis, theme)
        axis.set_title(escape.picture(heading(self.table)), color=theme.ink, fontsize=12, loc="left", pad=10)
        axis.set_xlabel("peak memory of training (MiB)", color=theme.ink, fontsize=11)
        better = "higher" if self.table.higher_is_better else "lower"
        metric = escape.picture(f"{self.table.split} {self.table.metric} ({better} is better)")
        axis.set_ylabel(metric, color=theme.ink, fontsize=11)

    def _clouds(self, axis: Axes, theme: Theme) -> None:
        """Draw every method's points in one colour."""
        for method, points in self.by_method.items():
            axis.plot(
                [point.x for point in points],
                [point.y for point in points],
                points[0].marker,
                color=points[0].colour,
                alpha=0.8,
                **_marker(5, theme),
                label=escape.picture(f"{self.table.infos[method].title}: {len(points)} settings, the best is named"),
            )

    def _markers(self, axis: Axes, theme: Theme) -> None:
        """Draw every point with its interval."""
        for number, point in enumerate(self.points, start=1):
            axis.errorbar(
                point.x,
                point.y,
                yerr=[[point.y - point.low], [point.high - point.y]] if point.has_interval else None,
                fmt=point.marker,
                color=point.colour,
                elinewidth=1.6,
                capsize=4,
                capthick=1.6,
                **_marker(9, theme),
                label=escape.picture(f"{number}  {point.name}"),
            )

    def _untrained_line(self, axis: Axes, theme: Theme) -> None:
        """Draw what no training at all reaches: a dashed line, or a word when it is far below the methods."""
        if self.untrained is None:
            return
        value, (low, high) = self.untrained, axis.get_ylim()
        inside = low - (high - low) <= value <= high + (high - low)
        if inside:
            axis.axhline(value, color=theme.ink, linestyle="--", linewidth=1, alpha=0.6)
            axis.set_ylim(min(low, value - 0.06 * (high - low)), max(high, value + 0.06 * (high - low)))
        text = f"no training: {value:.3f}" + ("" if inside else " (off the axis)")
        transform = axis.get_yaxis_transform() if inside else axis.transAxes
        y = value if inside else 0.02
        axis.text(0.99, y, text, transform=transform, ha="right", va="bottom", fontsize=9, color=theme.ink, alpha=0.8)


def _marker(size: int, theme: Theme) -> dict:
    return {"markersize": size, "markeredgecolor": theme.paper, "markeredgewidth": size / 10, "zorder": 3}
