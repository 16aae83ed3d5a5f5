"""Training curves as the numbers of an inline SVG: the mean loss over seeds, smoothed by a running mean."""

import csv
import math
from dataclasses import dataclass
from functools import partial

import numpy as np

from rowsft.errors import shortened
from rowsft.report.damaged import or_none
from rowsft.report.rows import Row, Table
from rowsft.report.section import Section
from rowsft.report.style import looks
from rowsft.store import Record
from rowsft.store.files import LARGEST

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 36
#: More curves than these cannot be told apart.
MOST_LINES = 24
#: The running mean spans this share of the steps.
_SMOOTHING = 1 / 20


@dataclass(frozen=True)
class Line:
    """One setting's curve: SVG points "x,y x,y ..." in the chart's pixels."""

    title: str
    colour: str
    points: str


@dataclass(frozen=True)
class Chart:
    """What the page draws: lines, and ticks as (pixel, text)."""

    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


def chart(section: Section) -> Chart | None:
    """The training loss of the rows over optimizer steps; None when no run has a curve.

    Of more rows than MOST_LINES, those of each method with the best metric.
    """
    curves = [(row, *found) for row in _drawn(section.table) if (found := _mean_loss(row)) is not None]
    if not curves:
        return None
    last = max(steps[-1] for _, steps, _ in curves)
    low, high = min(loss.min() for *_, loss in curves), max(loss.max() for *_, loss in curves)
    low, high = low - 0.05 * (high - low or 1), high + 0.05 * (high - low or 1)
    colours = looks(section.table.infos)

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / last

    def y(loss: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - loss) / (high - low)

    drawn = [
        Line(
            row.title,
            colours[row.method][0],
            " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in zip(steps, loss, strict=True)),
        )
        for row, steps, loss in curves
    ]
    return Chart(drawn, [(x(t), f"{t:g}") for t in _ticks(0, last)], [(y(t), f"{t:g}") for t in _ticks(low, high)])


def _drawn(table: Table) -> list[Row]:
    """The rows whose curves are drawn."""
    if len(table.rows) <= MOST_LINES:
        return table.rows
    best: dict[str, Row] = {}
    sign = 1 if table.higher_is_better else -1
    for row in table.rows:
        if row.estimate is not None:
            other = best.get(row.method)
            if other is None or sign * row.estimate.value > sign * other.estimate.value:
                best[row.method] = row
    return list(best.values())


def _mean_loss(row: Row) -> tuple[np.ndarray, np.ndarray] | None:
    """(steps, smoothed mean loss) over the seeds of a row; steps that not every seed logged are left out."""
    curves = []
    for record in row.done:
        curve = or_none(partial(_losses, record), record, "curve")
        if curve is not None:
            curves.append(curve)
    steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    if not steps:
        return None
    mean = np.array([np.mean([curve[step] for curve in curves]) for step in steps])
    half = int(len(steps) * _SMOOTHING / 2)
    smooth = [mean[max(0, i - half) : i + half + 1].mean() for i in range(len(steps))]
    return np.array(steps), np.array(smooth)


def _losses(record: Record) -> dict[int, float] | None:
    """{step: loss} of one run; None where it has no curve."""
    path = record.file("curve")
    if path is None or not path.exists():
        return None
    with path.open(newline="") as stream:
        points = [(int(line["step"]), float(line["loss"])) for line in csv.DictReader(stream) if line["loss"]]
    wrong = next((step for step, _ in points if not 1 <= step <= LARGEST), None)
    if wrong is not None:
        raise ValueError(f"step {shortened(str(wrong))}, expected steps from 1")
    return {step: loss for step, loss in points if abs(loss) <= LARGEST}


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers between low and high."""
    rough = (high - low) / 5
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, int(high / step + 1e-9) + 1)]
