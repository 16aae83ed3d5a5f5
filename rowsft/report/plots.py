"""The picture: primary metric against training's peak memory, one panel a table, labels that never overlap."""

import io
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rowsft.report.labels import Point, place
from rowsft.report.section import Section
from rowsft.report.style import look
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
_MIB = 2**20


def accuracy_vs_memory(sections: list[Section], theme: Theme = LIGHT) -> bytes | None:
    """PNG bytes, two panels a row; None when no run has both a metric and a measured training peak."""
    shown = [section for section in sections if _points(section)]
    if not shown:
        return None
    columns = min(2, len(shown))
    rows = -(-len(shown) // columns)
    longest = max(len(_points(section)) if _numbered(section) else 0 for section in shown)
    size = (_PANEL_INCHES[0] * columns, (_PANEL_INCHES[1] + _KEY_LINE_INCHES * longest) * rows)
    figure = Figure(figsize=size, dpi=_DPI, facecolor=theme.paper, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.15)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, section in zip(axes, shown, strict=False):
        _panel(axis, section, theme)
    for axis in axes[len(shown) :]:
        axis.set_visible(False)
    figure.draw_without_rendering()
    for axis, section in zip(axes, shown, strict=False):
        place(axis, canvas.get_renderer(), _labelled(section), theme.ink)
    stream = io.BytesIO()
    figure.savefig(stream, dpi=_DPI, format="png", facecolor=theme.paper, metadata={"Software": None})
    return stream.getvalue()


def _points(section: Section) -> list[dict]:
    needed = ("value", "train_peak_allocated_bytes")
    return [line for line in section.lines if all(line[key] is not None for key in needed)]


def _numbered(section: Section) -> bool:
    points = _points(section)
    return len(points) > _MOST_NAMES or any(len(line["title"]) > _LONGEST_NAME for line in points)


def _labelled(section: Section) -> list[Point]:
    labelled = []
    for number, line in enumerate(_points(section), start=1):
        name = str(number) if _numbered(section) else line["title"]
        colour, _ = look(line["method"], [other["method"] for other in section.lines])
        low, high = (line["value"] if line[end] is None else line[end] for end in ("low", "high"))
        labelled.append(Point(name, line["train_peak_allocated_bytes"] / _MIB, line["value"], low, high, colour))
    return labelled


def _panel(axis: Axes, section: Section, theme: Theme) -> None:
    points, table = _points(section), section.table
    methods = [line["method"] for line in section.lines]
    for number, line in enumerate(points, start=1):
        colour, marker = look(line["method"], methods)
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
            label=f"{number}  {line['title']}",
        )
    if _numbered(section):
        axis.legend(
            loc="upper left",
            bbox_to_anchor=(0, -0.16),
            fontsize=9,
            frameon=False,
            labelcolor=theme.ink,
            markerscale=0.7,
        )
    axis.margins(x=0.2, y=0.18)
    axis.set_xlim(left=max(0, axis.get_xlim()[0]))
    _zero_line(axis, section, theme)
    axis.set_facecolor(theme.paper)
    axis.grid(color=theme.faint, linewidth=0.6)
    axis.set_axisbelow(True)
    for name, spine in axis.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(theme.ink)
    axis.tick_params(colors=theme.ink, labelsize=10)
    axis.set_title(heading(table), color=theme.ink, fontsize=12, loc="left", pad=10)
    axis.set_xlabel("peak memory of training (MiB)", color=theme.ink, fontsize=11)
    better = "higher" if table.higher_is_better else "lower"
    axis.set_ylabel(f"{table.split} {table.metric} ({better} is better)", color=theme.ink, fontsize=11)


def _zero_line(axis: Axes, section: Section, theme: Theme) -> None:
    """What no training at all reaches: a dashed line, or a word when it is far below the methods."""
    untrained = [line for line in section.lines if line["method"] == "none" and line["value"] is not None]
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
