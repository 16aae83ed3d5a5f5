"""Training curves: the mean loss over seeds, smoothed by a running mean."""

import csv
from functools import partial

import numpy as np

from rowsft.errors import shortened
from rowsft.output import escape
from rowsft.report.damaged import or_none
from rowsft.report.drawing import EITHER, dress, figure, key_beneath, svg
from rowsft.report.rows import Row, Table
from rowsft.report.section import Section
from rowsft.report.style import looks
from rowsft.store import Record
from rowsft.store.files import LARGEST

#: More curves than these cannot be told apart.
MOST_LINES = 24
#: The running mean spans this share of the steps.
_SMOOTHING = 1 / 20
#: Of one method's curves: their colour is the same.
_STROKES = ("-", "--", ":", "-.")


@escape.quiet_drawing()
def chart(section: Section) -> bytes | None:
    """Draw the training loss of the rows over optimizer steps; return SVG bytes, None when no run has a curve.

    Of more rows than MOST_LINES, those of each method with the best metric.
    """
    curves = [(row, curve) for row in _drawn(section.table) if (curve := _mean_loss(row)) is not None]
    if not curves:
        return None
    drawn = figure(6.4, 3.4 + 0.19 * len(curves), EITHER)
    axis = drawn.subplots()
    colours = looks(section.table.infos)
    seen: dict[str, int] = {}
    for row, (steps, loss) in curves:
        stroke = _STROKES[seen.setdefault(row.method, 0) % len(_STROKES)]
        seen[row.method] += 1
        title = escape.picture(row.title)
        axis.plot(steps, loss, stroke, color=colours[row.method][0], linewidth=1.6, label=title)
    axis.set_xlim(left=0)
    axis.set_xlabel("optimizer step", color=EITHER.ink, fontsize=11)
    axis.set_ylabel("training loss", color=EITHER.ink, fontsize=11)
    dress(axis, EITHER)
    key_beneath(axis, EITHER)
    return svg(drawn)


def _drawn(table: Table) -> list[Row]:
    """Return the rows whose curves are drawn."""
    if len(table.rows) <= MOST_LINES:
        return table.rows
    pick = max if table.higher_is_better else min
    best = {}
    for method in dict.fromkeys(row.method for row in table.rows):
        scored = [(row.estimate.value, row) for row in table.rows if row.method == method and row.estimate]
        if scored:
            best[method] = pick(scored, key=lambda pair: pair[0])[1]
    return list(best.values())


def _mean_loss(row: Row) -> tuple[list[int], list[float]] | None:
    """Return (steps, smoothed mean loss) over the seeds of a row; steps that not every seed logged are left out."""
    curves = [curve for record in row.done if (curve := or_none(partial(_losses, record), record, "curve")) is not None]
    steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    if not steps:
        return None
    mean = np.array([np.mean([curve[step] for curve in curves]) for step in steps])
    half = int(len(steps) * _SMOOTHING / 2)
    return steps, [float(mean[max(0, i - half) : i + half + 1].mean()) for i in range(len(steps))]


def _losses(record: Record) -> dict[int, float] | None:
    """Return {step: loss} of one run; None where it has no curve."""
    path = record.file("curve")
    if path is None or not path.exists():
        return None
    with path.open(newline="") as stream:
        points = [(int(line["step"]), float(line["loss"])) for line in csv.DictReader(stream) if line["loss"]]
    wrong = next((step for step, _ in points if not 1 <= step <= LARGEST), None)
    if wrong is not None:
        raise ValueError(f"step {shortened(str(wrong))}, expected steps from 1")
    return {step: loss for step, loss in points if abs(loss) <= LARGEST}
