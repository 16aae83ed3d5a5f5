"""Names beside points, each at the nearest place that touches no marker, error bar or other name."""

from collections.abc import Iterator
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

_FONT_SIZE = 10
_MARKER_RADIUS = 7
_BAR_RADIUS = 4
#: From this many points on, a thin line ties the name to its marker.
_TIED_FROM = 15


@dataclass(frozen=True)
class Point:
    """A marker at (x, y) in data units with its error bar from low to high."""

    name: str
    x: float
    y: float
    low: float
    high: float
    colour: str


def place(axis: Axes, renderer, points: list[Point], ink: str) -> None:
    """Write every point's name into a laid-out axis. A name with no free place goes right beside its marker."""
    scale = axis.figure.dpi / 72
    taken = [box for point in points for box in _boxes(axis, point, scale)]
    taken += [text.get_window_extent(renderer) for text in axis.texts]
    frame = axis.get_window_extent(renderer)
    for point in sorted(points, key=lambda point: (point.x, point.y)):
        for offset in [*_offsets(), (_MARKER_RADIUS + 4, 0, "left", "center")]:
            label = _write(axis, point, offset, ink)
            label.update_positions(renderer)
            box = Text.get_window_extent(label, renderer)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                break
            label.remove()
        else:
            label = _write(axis, point, offset, ink)
        taken.append(Text.get_window_extent(label, renderer))


def _write(axis: Axes, point: Point, offset: tuple, ink: str) -> Annotation:
    dx, dy, across, up = offset
    tie = {"arrowstyle": "-", "color": point.colour, "lw": 0.9, "shrinkA": 1, "shrinkB": 6}
    label = axis.annotate(
        point.name,
        (point.x, point.y),
        xytext=(dx, dy),
        textcoords="offset points",
        ha=across,
        va=up,
        fontsize=_FONT_SIZE,
        color=ink,
        arrowprops=tie if max(abs(dx), abs(dy)) > _TIED_FROM else None,
        zorder=4,
    )
    label.set_in_layout(False)
    return label


def _offsets() -> Iterator[tuple[float, float, str, str]]:
    """Offsets from a marker in typographic points, nearest first, with the name's alignment."""
    for far in (11, 20, 32, 46, 62, 80):
        near = 0.7 * far
        yield (far, 0, "left", "center")
        yield (-far, 0, "right", "center")
        yield (near, near, "left", "bottom")
        yield (-near, near, "right", "bottom")
        yield (near, -near, "left", "top")
        yield (-near, -near, "right", "top")
        yield (0, far, "center", "bottom")
        yield (0, -far, "center", "top")


def _boxes(axis: Axes, point: Point, scale: float) -> list[Bbox]:
    """What a point covers, in pixels: its marker and its error bar."""
    (x, y), (_, low), (_, high) = axis.transData.transform(
        [(point.x, point.y), (point.x, point.low), (point.x, point.high)]
    )
    marker, bar = _MARKER_RADIUS * scale, _BAR_RADIUS * scale
    bottom, top = sorted((low, high))
    return [Bbox([[x - marker, y - marker], [x + marker, y + marker]]), Bbox([[x - bar, bottom], [x + bar, top]])]
