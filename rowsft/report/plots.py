"""The picture: primary metric against training's peak memory, one panel a table, labels that never overlap.

A panel of a few points names each, one of more numbers them, one of very many names the best of each method.
"""

import io
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rowsft.formulas import bounds
from rowsft.output import escape
from rowsft.report.labels import Point, place
from rowsft.report.section import Section
from rowsft.report.style import looks
from rowsft.report.tables import heading


@dataclass(frozen=True)
class Theme:
    """Colours of paper and ink."""

    paper: str
    ink: str
    faint: str


LIGHT = Theme("#ffffff", "#1c2024", "#d9dde1")
DARK = Theme("#16191d", "#e6e8ea", "#3a4047")

_PANEL_INCHES = (6.4, 4.4)
_KEY_LINE_INCHES = 0.19
_DPI = 160
#: More names than this, or longer ones, do not fit a panel: the points are numbered and a key beneath has the names.
_MOST_NAMES = 7
_LONGEST_NAME = 24
#: From this many points on, neither names nor numbers nor intervals can be read.
_CROWDED_FROM = 41
_MIB = 2**20
#: More would take minutes to lay out and more pixels than a picture can have.
_MOST_PANELS = 12


@escape.quiet_drawing()
def accuracy_vs_memory(sections: list[Section], theme: Theme = LIGHT) -> bytes | None:
    """PNG bytes, two panels a row; None when no run has both a metric and a measured training peak.

    Of a store with many tables the first ones are drawn, and the picture says so.
    """
    shown = [section for section in sections if _points(section)]
    if not shown:
        return None
    left_out, shown = shown[_MOST_PANELS:], shown[:_MOST_PANELS]
    columns = min(2, len(shown))
    rows = -(-len(shown) // columns)
    longest = max(_key_lines(section) for section in shown)
    size = (_PANEL_INCHES[0] * columns, (_PANEL_INCHES[1] + _KEY_LINE_INCHES * longest) * rows)
    figure = Figure(figsize=size, dpi=_DPI, facecolor=theme.paper, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.15)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, section in zip(axes, shown, strict=False):
        _panel(axis, section, theme)
    for axis in axes[len(shown) :]:
        axis.set_visible(False)
    if left_out:
        count = f"the first {len(shown)} of {len(shown) + len(left_out)} tables"
        figure.supxlabel(f"{count}; rowsft report --experiment NAME draws others", color=theme.ink, fontsize=11)
    figure.draw_without_rendering()
    for axis, section in zip(axes, shown, strict=False):
        place(axis, canvas.get_renderer(), _labelled(section), theme.ink)
    stream = io.BytesIO()
    figure.savefig(stream, dpi=_DPI, format="png", facecolor=theme.paper, metadata={"Software": None})
    return stream.getvalue()


def _points(section: Section) -> list[dict]:
    needed = ("value", "train_peak_allocated_bytes")
    return [line for line in section.lines if all(line[key] is not None for key in needed)]


def _crowded(section: Section) -> bool:
    return len(_points(section)) >= _CROWDED_FROM


def _numbered(section: Section) -> bool:
    points = _points(section)
    return not _crowded(section) and (
        len(points) > _MOST_NAMES or any(len(line["title"]) > _LONGEST_NAME for line in points)
    )


def _key_lines(section: Section) -> int:
    """Lines of the key beneath a panel."""
    if _crowded(section):
        return len(_by_method(section))
    return len(_points(section)) if _numbered(section) else 0


def _by_method(section: Section) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for line in _points(section):
        found.setdefault(line["method"], []).append(line)
    return found


def _labelled(section: Section) -> list[Point]:
    points, crowded, numbered = _points(section), _crowded(section), _numbered(section)
    if crowded:
        points = best_of_each_method(section)
    shown = looks(section.table.infos)
    labelled = []
    for number, line in enumerate(points, start=1):
        low, high = (line["value"] if crowded or line[end] is None else line[end] for end in ("low", "high"))
        labelled.append(
            Point(
                str(number) if numbered else escape.picture(line["title"]),
                line["train_peak_allocated_bytes"] / _MIB,
                line["value"],
                low,
                high,
                shown[line["method"]][0],
            )
        )
    return labelled


def best_of_each_method(section: Section) -> list[dict]:
    """The point of each method with the best value."""
    pick = max if section.table.higher_is_better else min
    return [pick(lines, key=lambda line: line["value"]) for lines in _by_method(section).values()]


def _limits(section: Section) -> tuple[float, float]:
    """The ends of the axis: all values, and of intervals what does not squeeze the values together.

    Two seeds have intervals of twelve standard errors, next to which differences of values would be invisible.
    """
    points = _points(section)
    values = [line["value"] for line in points]
    low, high = min(values), max(values)
    reach = 1.5 * max(high - low, 0.02 * abs(high), 1e-6)
    ends = (
        [] if _crowded(section) else [line[end] for line in points for end in ("low", "high") if line[end] is not None]
    )
    low, high = (max(min([low, *ends]), low - reach), min(max([high, *ends]), high + reach))
    room = 0.12 * (high - low or 0.02 * abs(high) or 1e-3)
    limits = bounds(section.table.metric)
    if limits is None or not all(limits[0] <= value <= limits[1] for value in values):
        limits = (low, high)
    # A little beyond the metric's range: a marker on the border is seen whole.
    return max(low - room, limits[0] - room), min(high + room, limits[1] + room)


def _clouds(axis: Axes, section: Section, theme: Theme) -> None:
    """Every method's points in one colour."""
    shown = looks(section.table.infos)
    for method, lines in _by_method(section).items():
        colour, marker = shown[method]
        axis.plot(
            [line["train_peak_allocated_bytes"] / _MIB for line in lines],
            [line["value"] for line in lines],
            marker,
            color=colour,
            markersize=5,
            markeredgecolor=theme.paper,
            markeredgewidth=0.5,
            alpha=0.8,
            zorder=3,
            label=escape.picture(f"{section.table.infos[method].title}: {len(lines)} settings, the best is named"),
        )


def _markers(axis: Axes, section: Section, theme: Theme) -> None:
    """Every point with its interval."""
    shown = looks(section.table.infos)
    for number, line in enumerate(_points(section), start=1):
        colour, marker = shown[line["method"]]
        errors = None if line["low"] is None else [[line["value"] - line["low"]], [line["high"] - line["value"]]]
        x = line["train_peak_allocated_bytes"] / _MIB
        axis.errorbar(
            x,
            line["value"],
            yerr=errors,
            fmt=marker,
            color=colour,
            markersize=9,
            markeredgecolor=theme.paper,
            markeredgewidth=0.8,
            elinewidth=1.6,
            capsize=4,
            capthick=1.6,
            zorder=3,
            label=escape.picture(f"{number}  {line['title']}"),
        )


def _panel(axis: Axes, section: Section, theme: Theme) -> None:
    table = section.table
    (_clouds if _crowded(section) else _markers)(axis, section, theme)
    if _key_lines(section):
        axis.legend(
            loc="upper left",
            bbox_to_anchor=(0, -0.16),
            fontsize=9,
            frameon=False,
            labelcolor=theme.ink,
            markerscale=0.7,
        )
    axis.margins(x=0.2)
    axis.set_xlim(left=max(0, axis.get_xlim()[0]))
    axis.set_ylim(*_limits(section))
    _zero_line(axis, section, theme)
    axis.set_facecolor(theme.paper)
    axis.grid(color=theme.faint, linewidth=0.6)
    axis.set_axisbelow(True)
    for name, spine in axis.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(theme.ink)
    axis.tick_params(colors=theme.ink, labelsize=10)
    axis.set_title(escape.picture(heading(table)), color=theme.ink, fontsize=12, loc="left", pad=10)
    axis.set_xlabel("peak memory of training (MiB)", color=theme.ink, fontsize=11)
    better = "higher" if table.higher_is_better else "lower"
    axis.set_ylabel(escape.picture(f"{table.split} {table.metric} ({better} is better)"), color=theme.ink, fontsize=11)


def _zero_line(axis: Axes, section: Section, theme: Theme) -> None:
    """What no training at all reaches: a dashed line, or a word when it is far below the methods."""
    infos, lines = section.table.infos, section.lines
    untrained = [line for line in lines if not infos[line["method"]].trains and line["value"] is not None]
    if not untrained:
        return
    value, (low, high) = untrained[0]["value"], axis.get_ylim()
    inside = low - (high - low) <= value <= high + (high - low)
    if inside:
        axis.axhline(value, color=theme.ink, linestyle="--", linewidth=1, alpha=0.6)
        axis.set_ylim(min(low, value - 0.06 * (high - low)), max(high, value + 0.06 * (high - low)))
    text = f"no training: {value:.3f}" + ("" if inside else " (off the axis)")
    place = (0.99, value) if inside else (0.99, 0.02)
    transform = axis.get_yaxis_transform() if inside else axis.transAxes
    axis.text(*place, text, transform=transform, ha="right", va="bottom", fontsize=9, color=theme.ink, alpha=0.8)
