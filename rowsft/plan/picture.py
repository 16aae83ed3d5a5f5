"""Planned peaks as stacked bars: one bar a plan, the parts of the memory in the colours of every memory picture."""

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rowsft.output import escape
from rowsft.plan.description import Description
from rowsft.plan.fit import CARDS_MIB, MIB
from rowsft.report.memory import COLOURS

# One of every size: the lines of cards that are nearly alike would cover each other.
_DRAWN_CARDS = ("V100 16GB", "RTX 4090", "A100 40GB", "RTX 6000 Ada", "H100 80GB", "H200", "B200")


@escape.quiet_drawing()
def bars(plans: Description) -> bytes:
    """PNG bytes: the name of each plan under its bar. Cards that the bars come near are drawn as lines."""
    peaks = plans.peaks
    figure = Figure(figsize=(max(6.4, 1.1 * len(peaks) + 2.6), 4.6), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    below = [0.0] * len(peaks)
    for part, colour in COLOURS.items():
        sizes = [parts[part] / MIB for parts in peaks.values()]
        axis.bar(range(len(peaks)), sizes, bottom=below, color=colour, label=part.replace("_", " "), width=0.7)
        below = [low + size for low, size in zip(below, sizes, strict=True)]
    top = max(below)
    for x, height in enumerate(below):
        # On white, in front of a card's line that runs through it.
        behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
        axis.text(x, height + 0.015 * top, f"{height:,.0f}", ha="center", fontsize=8, bbox=behind)
    for name in _DRAWN_CARDS:
        card = CARDS_MIB[name]
        if 0.2 * top < card < 1.15 * top:
            axis.axhline(card, color="#1c2024", linewidth=0.6, linestyle=":")
            axis.text(len(peaks) - 0.55, card, name, fontsize=7, va="bottom", ha="left")
    axis.set_xticks(range(len(peaks)), list(peaks), fontsize=8, rotation=20 if len(peaks) > 6 else 0)
    axis.set(ylabel="MiB of tensors at the peak of training", ylim=(0, 1.18 * top), xlim=(-0.6, len(peaks)))
    axis.set_title(plans.title, fontsize=10)
    handles, labels = axis.get_legend_handles_labels()
    axis.legend(handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
