"""Tasks of lm-evaluation-harness in a table: a column a task, with each row's main metric, interval, differences."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

from rowsft import formulas
from rowsft.record import HarnessResult
from rowsft.report.harness_samples import scored_samples
from rowsft.report.harness_setups import Names, Setup, main_metric, newest
from rowsft.report.predictions import Difference, Scored, difference, flat_difference, over_examples
from rowsft.report.references import REFERENCES
from rowsft.report.rows import Row, Table
from rowsft.report.statistics import Estimate, over_seeds
from rowsft.store import Record

Seed = int | None


@dataclass(frozen=True)
class Cell:
    """One row's number. examples: of each evaluation. sampled: whether the examples of all seeds were kept; a group has
    none, and older: whether an evaluation is of before they were kept."""

    estimate: Estimate
    examples: int | None
    sampled: bool
    older: bool
    minus_lora: Difference | None = None
    minus_full: Difference | None = None

    def flat(self, key: str) -> dict[str, float | str | None]:
        """Return the columns of table.csv, whose names begin with `key`."""
        estimate = self.estimate
        own = {"low": estimate.low, "high": estimate.high, "interval": estimate.covers, "seeds": estimate.seeds}
        return {
            key: estimate.value,
            **{f"{key}.{name}": value for name, value in own.items()},
            f"{key}.examples": self.examples,
            **flat_difference(f"{key}.minus_lora", self.minus_lora),
            **flat_difference(f"{key}.minus_full", self.minus_full),
        }


@dataclass(frozen=True)
class HarnessColumn:
    """A column; cells: in the order of the table's finished rows, None where a row was not evaluated so."""

    setup: Setup
    key: str
    title: str
    higher_is_better: bool | None
    cells: list[Cell | None]


def harness_columns(table: Table, names: Names) -> list[HarnessColumn]:
    """Return a table's columns by title; tasks that were evaluated for a group alone are left out."""
    rows = [row for row in table.rows if row.done]
    evaluated = [[(record, newest(record.result)) for record in row.done] for row in rows]
    shown: dict[tuple[Setup, str], bool | None] = {}
    for _, results in (pair for of_row in evaluated for pair in of_row):
        for setup, result in results.items():
            key = main_metric(result)
            if key is not None and result.part_of is None and result.metrics.get(key) is not None:
                shown[setup, key] = result.higher_is_better.get(key.partition(",")[0])
    columns = []
    for (setup, key), higher in shown.items():
        # One column after the other: all of its evaluations have as many examples, so the bootstrap's draws are kept.
        own = [
            [_Evaluation(record, results[setup], key) for record, results in of_row if setup in results]
            for of_row in evaluated
        ]
        cells = _cells(table, rows, [[one for one in of_row if one.value is not None] for of_row in own])
        columns.append(HarnessColumn(setup, names.key(setup, key), names.title(setup, key), higher, cells))
    return sorted(columns, key=lambda column: column.title)


@dataclass(frozen=True)
class _Evaluation:
    """One run's result under a metric's key."""

    record: Record
    result: HarnessResult
    key: str

    @property
    def value(self) -> float | None:
        return self.result.metrics.get(self.key)

    @property
    def seed(self) -> Seed:
        return self.record.config.get("seed")


def _cells(table: Table, rows: list[Row], own: list[list[_Evaluation]]) -> list[Cell | None]:
    place = {id(row): number for number, row in enumerate(rows)}

    @cache
    def scores(number: int) -> dict[Seed, Scored]:
        """Read when they are asked for: a row of several seeds without a reference needs none."""
        read = {one.seed: scored_samples(one.record, one.result, one.key) for one in own[number]}
        return {seed: found for seed, found in read.items() if found is not None}

    def against(number: int, method: str) -> Difference | None:
        reference = table.references.of(rows[number], method).row
        if reference is None or reference is rows[number]:
            return None
        other = place[id(reference)]
        if not {one.seed for one in own[number]} & {one.seed for one in own[other]}:
            return None
        return difference(scores(number), scores(other))

    cells: list[Cell | None] = []
    for number, found in enumerate(own):
        if not found:
            cells.append(None)
            continue
        pairs = (against(number, method) for method in REFERENCES)
        without = [one.result for one in found if one.result.samples.path is None]
        older = any(result.main_metric is None for result in without)
        estimate = _estimate(found, partial(scores, number))
        cells.append(Cell(estimate, found[0].result.examples, not without, older, *pairs))
    return cells


def _estimate(found: list[_Evaluation], scores: Callable[[], dict[Seed, Scored]]) -> Estimate:
    values = [one.value for one in found if one.value is not None]
    bounds = _bounds(found[0].key.partition(",")[0])
    if len(values) > 1:
        return over_seeds(values).within(bounds)
    return over_examples(values[0], next(iter(scores().values()), None)).within(bounds)


def _bounds(metric: str) -> tuple[float, float] | None:
    """Return the range of a metric of the harness: acc, acc_norm and their like are shares."""
    if metric.startswith("acc"):
        return (0.0, 1.0)
    return formulas.bounds({"mcc": "matthews"}.get(metric, metric))
