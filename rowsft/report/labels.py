"""Names beside points, each at the nearest of a few places that touches no marker, error bar or other name."""

from dataclasses import dataclass
from typing import cast

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import FancyArrowPatch
from matplotlib.text import Text
from matplotlib.transforms import Bbox

_ACROSS = {1: "left", 0: "center", -1: "right"}
_UP = {1: "bottom", 0: "center", -1: "top"}
_SIDES = ((1, 0), (-1, 0), (0.7, 0.7), (-0.7, 0.7), (0.7, -0.7), (-0.7, -0.7), (0, 1), (0, -1))
#: Offsets from a marker in typographic points, nearest first.
_OFFSETS = [(far * x, far * y) for far in (11, 20, 32, 46, 62, 80) for x, y in _SIDES]
#: From this many points on, a thin line ties the name to its marker.
_TIED_FROM = 15
_MARKER_RADIUS, _BAR_RADIUS = 7, 4


@dataclass(frozen=True)
class Point:
    """A marker at (x, y) in data units with its error bar from low to high."""

    name: str
    x: float
    y: float
    low: float
    high: float
    colour: str


def place(axis: Axes, points: list[Point], ink: str) -> None:
    """Write every point's name into an axis that is laid out. One with no free place goes right beside its marker."""
    renderer = cast(FigureCanvasAgg, axis.figure.canvas).get_renderer()
    pixels, frame = axis.figure.dpi / 72, axis.get_window_extent(renderer)
    taken = [text.get_window_extent(renderer) for text in axis.texts]
    for point in points:
        marker, bar = [(point.x, point.y)] * 2, [(point.x, point.low), (point.x, point.high)]
        for ends, beside, beyond in ((marker, _MARKER_RADIUS, _MARKER_RADIUS), (bar, _BAR_RADIUS, 0)):
            taken.append(Bbox(axis.transData.transform(ends)).padded(beside * pixels, beyond * pixels))
    for point in sorted(points, key=lambda point: (point.x, point.y)):
        tie = {"arrowstyle": "-", "color": point.colour, "lw": 0.9, "shrinkA": 1, "shrinkB": 6}
        name = axis.annotate(
            point.name,
            (point.x, point.y),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=10,
            color=ink,
            arrowprops=tie,
            zorder=4,
        )
        name.set_in_layout(False)
        for x, y in [*_OFFSETS, _OFFSETS[0]]:
            name.set(position=(x, y), ha=_ACROSS[(x > 0) - (x < 0)], va=_UP[(y > 0) - (y < 0)])
            name.update_positions(renderer)
            box = Text.get_window_extent(name, renderer)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not box.count_overlaps(taken):
                break
        cast(FancyArrowPatch, name.arrow_patch).set_visible(max(abs(x), abs(y)) > _TIED_FROM)
        taken.append(box)
