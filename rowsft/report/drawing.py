"""What pictures of a report share: two themes, a figure without a display, an axis in a theme, the bytes."""

import io
from dataclasses import dataclass

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

_DPI = 160


@dataclass(frozen=True)
class Theme:
    """Colours of paper and ink."""

    paper: str
    ink: str
    faint: str


LIGHT = Theme("#ffffff", "#1c2024", "#d9dde1")
DARK = Theme("#16191d", "#e6e8ea", "#3a4047")
#: For one picture on light and dark pages alike: nothing beneath it, and an ink that can be read on both.
EITHER = Theme("none", "#7b858f", "#80808040")


def figure(width: float, height: float, theme: Theme = LIGHT) -> Figure:
    """Return an empty figure of so many inches that lays itself out."""
    layout = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15)
    made = Figure(figsize=(width, height), dpi=_DPI, facecolor=theme.paper, layout=layout)
    FigureCanvasAgg(made)
    return made


def dress(axis: Axes, theme: Theme) -> None:
    """Give an axis the theme's colours, a faint grid and no frame."""
    axis.set_facecolor(theme.paper)
    axis.grid(color=theme.faint, linewidth=0.6)
    axis.set_axisbelow(True)
    for name, spine in axis.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(theme.ink)
    axis.tick_params(colors=theme.ink, labelsize=10)


def key_beneath(axis: Axes, theme: Theme) -> None:
    """Write the axis' key beneath it, one line an entry."""
    axis.legend(
        loc="upper left", bbox_to_anchor=(0, -0.16), fontsize=9, frameon=False, labelcolor=theme.ink, markerscale=0.7
    )


def png(drawn: Figure) -> bytes:
    """Return the PNG bytes of a figure, the same ones for the same figure."""
    stream = io.BytesIO()
    drawn.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def svg(drawn: Figure) -> bytes:
    """Return the SVG bytes of a figure, the same ones for the same figure; texts stay texts."""
    stream = io.BytesIO()
    with rc_context({"svg.hashsalt": "rowsft", "svg.fonttype": "none"}):
        drawn.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()
