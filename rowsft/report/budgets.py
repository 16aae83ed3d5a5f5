"""A table's rows as lines over budgets: metric, held-out loss, peak memory and step time by trainable parameters."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from statistics import median

from rowsft.output.quantities import MIB, text
from rowsft.record import Attempt
from rowsft.report.rows import Row, Table
from rowsft.report.settings import (
    BUDGET_SETTINGS,
    WATCHING,
    differing,
    short_names,
    text_of,
    under,
)
from rowsft.report.statistics import Estimate, over_seeds
from rowsft.selection.budget_met import is_met

#: More lines than these cannot be told apart.
MOST_LINES = 12
#: Names under which tasks record their loss on a split, or once did.
LOSSES = ("loss", "answer_loss")
SPREAD = "lowest and highest seed"


@dataclass(frozen=True)
class Quantity:
    """What is drawn against trainable parameters. key: its name in budget_curves.csv. covers: what its band is."""

    key: str
    title: str
    unit: str
    read: Callable[[Row], Estimate | None]


@dataclass(frozen=True)
class Point:
    """One row of a line. parameters: trainable ones, the head left out."""

    row: Row
    parameters: int

    @property
    def estimate(self) -> Estimate | None:
        """The primary metric."""
        return self.row.estimate


@dataclass(frozen=True)
class Series:
    """One method, with its own settings, at several budgets; points ascend."""

    method: str
    title: str
    points: list[Point]

    def at(self, size: int) -> Point | None:
        """Return the point whose parameters count as the same budget, None where there is none."""
        return next((point for point in self.points if is_met(size, point.parameters)), None)


@dataclass(frozen=True)
class Budgets:
    """The lines of a table, and its rows without a budget (full fine-tuning, the head alone), which are levels."""

    table: Table
    series: list[Series]
    levels: list[Row]

    @cached_property
    def sizes(self) -> list[int]:
        """The budgets of all lines, those that count as the same once."""
        kept: list[int] = []
        for size in sorted(point.parameters for one in self.series for point in one.points):
            if not kept or not is_met(kept[-1], size):
                kept.append(size)
        return kept

    @cached_property
    def quantities(self) -> list[Quantity]:
        """What the runs recorded of: metric, loss (where it is not the metric itself), memory, time."""
        table = self.table
        found = [Quantity("metric", f"{table.split} {table.metric}", "", lambda row: row.estimate)]
        name = next((name for name in LOSSES if name != table.metric and _has(table, name)), None)
        if name is not None:
            unit = _unit(table, name)
            found.append(Quantity("loss", f"{table.split} {name}", unit, lambda row: _mean(row, table.split, name)))
        found += [
            Quantity("train_peak", "peak memory of training", "MiB", lambda row: _middle(row, _peak)),
            Quantity("step", "step time", "ms", lambda row: _middle(row, _step)),
        ]
        return [one for one in found if any(one.read(point.row) for series in self.series for point in series.points)]

    def flat(self) -> list[dict]:
        """Return one dict a point and quantity, as in budget_curves.csv."""
        where = {"experiment": self.table.experiment, "task": self.table.task, "model": self.table.model}
        return [
            {
                **where,
                "line": one.title,
                "method": one.method,
                "trainable_parameters": point.parameters,
                "quantity": quantity.key,
                "name": quantity.title,
                "unit": quantity.unit,
                "value": estimate.value,
                "low": estimate.low,
                "high": estimate.high,
                "interval": estimate.covers,
                "seeds": len(point.row.done),
            }
            for quantity in self.quantities
            for one in self.series
            for point in one.points
            if (estimate := quantity.read(point.row)) is not None
        ]


def budgets(table: Table) -> Budgets | None:
    """Return a table's lines; None where no method was run at two budgets, or where there are too many lines."""
    rows = [row for row in table.rows if row.done and row.trains]
    sized = [row for row in rows if row.info.budgeted and row.size]
    kept = {
        id(row): {key: value for key, value in row.settings.items() if not _of_budget(row, key, table.tuned)}
        for row in sized
    }
    members: dict[tuple[str, str], list[Row]] = {}
    for row in sized:
        members.setdefault((row.method, text_of(kept[id(row)])), []).append(row)
    lines = [
        Series(own[0].method, _title(own[0], kept, sized), sorted((Point(row, _size(row)) for row in own), key=_order))
        for own in members.values()
    ]
    several = [one for one in lines if len({point.parameters for point in one.points}) > 1]
    if not several or len(lines) > MOST_LINES:
        return None
    return Budgets(table, lines, [row for row in rows if not row.info.budgeted])


def _of_budget(row: Row, key: str, tuned: tuple[str, ...]) -> bool:
    # What was tuned for each row by itself makes no other line.
    own = tuple(f"method.{size}" for size in row.info.sizes)
    return key in tuned or key in WATCHING or under(key, (*BUDGET_SETTINGS, *own))


def _title(row: Row, kept: dict[int, dict[str, object]], rows: list[Row]) -> str:
    """Return the method with what tells its lines apart: "row-SFT (channel=columns)"."""
    names = short_names(differing((kept[id(other)] for other in rows if other.method == row.method), absent=True))
    variant = ", ".join(f"{name}={text(row.settings.get(key))}" for key, name in names.items())
    return f"{row.info.title} ({variant})" if variant else row.info.title


def _size(row: Row) -> int:
    """Return what the row trains: what was achieved, not what was asked for."""
    sizes = row.values(lambda result: result.parameters.adapter)
    return int(sizes[0]) if sizes else int(row.size or 0)


def _order(point: Point) -> int:
    return point.parameters


def _unit(table: Table, loss: str) -> str:
    # Tasks of responses, and they alone, report a perplexity; once they called their loss answer_loss.
    if loss == "answer_loss" or _has(table, "perplexity"):
        return "nats per token"
    return "squared error" if table.metric in ("pearson", "spearman") else "nats per example"


def _has(table: Table, name: str) -> bool:
    return any(
        (result.metrics.get(table.split) or {}).get(name) is not None for row in table.rows for result in row.results
    )


def _mean(row: Row, split: str, name: str) -> Estimate | None:
    """Return a metric's mean over seeds with its t interval; of one seed no interval."""
    values = row.values(lambda result: (result.metrics.get(split) or {}).get(name))
    if len(values) > 1:
        return over_seeds(values)
    return Estimate(values[0], None, None, None, 1) if values else None


def _middle(row: Row, read: Callable[[Attempt], float | None]) -> Estimate | None:
    """Return the median over seeds, from the lowest to the highest."""
    values = row.values(read)
    return Estimate(median(values), min(values), max(values), SPREAD, len(values)) if values else None


def _peak(result: Attempt) -> float | None:
    peak = result.memory.train.peak_allocated_bytes
    return None if peak is None else peak / MIB


def _step(result: Attempt) -> float | None:
    return None if result.step_seconds.median is None else 1000 * result.step_seconds.median
