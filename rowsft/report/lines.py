"""A table's rows as numbers: what each row measured, over its seeds, and what it is held against."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from operator import itemgetter
from statistics import fmean, median
from typing import Any

from rowsft.output.quantities import text
from rowsft.record import Attempt
from rowsft.report.harness import Cell
from rowsft.report.other_metrics import other_estimates
from rowsft.report.predictions import Difference, difference, flat_difference
from rowsft.report.references import REFERENCES
from rowsft.report.rows import Row, Table
from rowsft.report.settings import differing, failed_phase, failure, short_names
from rowsft.report.statistics import Estimate


def _measured(read: Callable[[Attempt], float | None], over: Callable[[list], Any] = median) -> Any:
    """Declare a field: what `read` takes from every finished attempt, brought to one by `over`; None without any."""
    return field(default=None, metadata={"read": read, "over": over})


def _forgetting(attempt: Attempt) -> float | None:
    before, after = (loss.get("loss") for loss in (attempt.forgetting.before, attempt.forgetting.after))
    return None if before is None or after is None else after - before


@dataclass(kw_only=True)
class Line:
    """A shown row as numbers, in the order of table.csv, units in the names; None for what was not measured.

    Metrics are means over seeds, costs medians over seeds. `*_to_lora` are ratios to the row's LoRA; `minus_lora` and
    `minus_full` paired differences of the primary metric to its LoRA and its full fine-tuning, whose titles are
    `lora_reference` and `full_reference` (references.py says which those are). metrics: all others, by split and name.
    others: those of the split beside the primary one, with intervals.
    harness: tasks of lm-evaluation-harness, by the key of their column.
    forgetting: the loss of the general text after training minus that before, in nats per token.
    """

    experiment: str
    task: str
    model: str
    method: str
    title: str
    seeds: int
    runs: str
    adapter_parameters: int | None = _measured(lambda a: a.parameters.adapter, over=itemgetter(0))
    head_parameters: int | None = _measured(lambda a: a.parameters.head, over=itemgetter(0))
    base_parameters: int | None = _measured(lambda a: a.parameters.base, over=itemgetter(0))
    budget_asked: int | None = _measured(lambda a: a.parameters.budget_asked, over=itemgetter(0))
    budget_achieved: int | None = _measured(lambda a: a.parameters.budget_achieved, over=itemgetter(0))
    budget_off_percent: float | None = None
    metric: str
    split: str
    estimate: Estimate | None
    train_peak_allocated_bytes: float | None = _measured(lambda a: a.memory.train.peak_allocated_bytes)
    train_step_peak_new_bytes: float | None = _measured(lambda a: a.memory.train.step_peak_new_bytes)
    select_peak_allocated_bytes: float | None = _measured(lambda a: a.memory.select.peak_allocated_bytes)
    train_peak_reserved_bytes: float | None = _measured(lambda a: a.memory.train.peak_reserved_bytes)
    train_process_peak_bytes: float | None = _measured(lambda a: a.memory.train.process_peak_bytes)
    train_resident_peak_bytes: float | None = _measured(lambda a: a.memory.train.resident_peak_bytes)
    step_median_seconds: float | None = _measured(lambda a: a.step_seconds.median)
    step_p95_seconds: float | None = _measured(lambda a: a.step_seconds.p95)
    tokens_per_second: float | None = _measured(lambda a: a.tokens_per_second)
    select_seconds: float | None
    step_p25_seconds: float | None = _measured(lambda a: a.step_seconds.p25)
    step_p75_seconds: float | None = _measured(lambda a: a.step_seconds.p75)
    step_min_seconds: float | None = _measured(lambda a: a.step_seconds.min)
    step_max_seconds: float | None = _measured(lambda a: a.step_seconds.max)
    data_wait_seconds: float | None = _measured(lambda a: a.data_seconds.total)
    data_seconds: float | None = _measured(lambda a: a.seconds.data)
    load_seconds: float | None = _measured(lambda a: a.seconds.load)
    attach_seconds: float | None = _measured(lambda a: a.seconds.attach)
    train_seconds: float | None = _measured(lambda a: a.seconds.train)
    evaluate_seconds: float | None = _measured(lambda a: a.seconds.evaluate)
    save_seconds: float | None = _measured(lambda a: a.seconds.save)
    measure_seconds: float | None = _measured(lambda a: a.seconds.measure)
    total_seconds: float | None = _measured(lambda a: a.seconds.total)
    select_joules: float | None = _measured(lambda a: a.energy.select_joules)
    train_joules: float | None = _measured(lambda a: a.energy.train_joules)
    evaluate_joules: float | None = _measured(lambda a: a.energy.evaluate_joules)
    learning_rate: float | None
    general_loss_before: float | None = _measured(lambda a: a.forgetting.before.get("loss"), over=fmean)
    general_loss_after: float | None = _measured(lambda a: a.forgetting.after.get("loss"), over=fmean)
    forgetting: float | None = _measured(_forgetting, over=fmean)
    csd_rel: float | None = _measured(lambda a: a.forgetting.csd_rel, over=fmean)
    metrics: dict[str, float]
    others: dict[str, Estimate]
    differs_in: str
    train_peak_to_lora: float | None = None
    step_to_lora: float | None = None
    minus_lora: Difference | None = None
    lora_reference: str | None = None
    minus_full: Difference | None = None
    full_reference: str | None = None
    harness: dict[str, Cell] = field(default_factory=dict)

    @property
    def value(self) -> float | None:
        """The primary metric; None where the split was not evaluated."""
        return self.estimate.value if self.estimate else None

    def flat(self) -> dict[str, Any]:
        """Return {name: value} as in table.csv: intervals and metrics have columns of their own."""
        columns: dict[str, Any] = {}
        for name, value in ((entry.name, getattr(self, entry.name)) for entry in fields(self)):
            if name == "metrics":
                columns |= value
            elif name == "others":
                for metric, estimate in value.items():
                    parts = {"low": estimate.low, "high": estimate.high, "interval": estimate.covers}
                    columns |= {f"{self.split}_{metric}_{part}": bound for part, bound in parts.items()}
            elif name == "harness":
                columns |= {column: part for key, cell in value.items() for column, part in cell.flat(key).items()}
            elif name == "estimate":
                keys = {"value": "value", "low": "low", "high": "high", "interval": "covers", "interval_cut": "cut"}
                columns |= {key: getattr(value, part, None) for key, part in keys.items()}
            elif name in ("minus_lora", "minus_full"):
                columns |= flat_difference(name, value)
            else:
                columns[name] = value
        return columns


@dataclass(frozen=True)
class Unfinished:
    """A run without a result, with the phase that it ended in and the first line of the reason."""

    title: str
    method: str
    seed: int | None
    state: str
    phase: str | None
    reason: str
    run: str


@dataclass(frozen=True)
class Rate:
    """A learning rate that was tried, with its validation metric and what it cost."""

    title: str
    method: str
    learning_rate: float | None
    validation: float | None
    seeds: int
    unfinished: int
    seconds: float
    chosen: bool


def lines(table: Table, step: Callable[[], object] = lambda: None) -> list[Line]:
    """Return one line for each shown row that has a finished run; `step` is called after each."""
    finished = [row for row in table.rows if row.done]
    differs = differs_in(finished)
    made = {}
    for row in finished:
        # The slow part: predictions are read here.
        made[id(row)] = _line(table, row, differs[id(row)])
        step()
    for row in finished:
        line = made[id(row)]
        lora, full = (table.references.of(row, method).row for method in REFERENCES)
        if lora is not None:
            beside = made[id(lora)]
            line.train_peak_to_lora = _ratio(line.train_peak_allocated_bytes, beside.train_peak_allocated_bytes)
            line.step_to_lora = _ratio(line.step_median_seconds, beside.step_median_seconds)
            line.minus_lora, line.lora_reference = _paired(row, lora), lora.title
        if full is not None:
            line.minus_full, line.full_reference = _paired(row, full), full.title
    return list(made.values())


def _line(table: Table, row: Row, differs: str) -> Line:
    measured = {entry.name: entry.metadata for entry in fields(Line) if "read" in entry.metadata}
    numbers = {name: row.values(how["read"]) for name, how in measured.items()}
    line = Line(
        experiment=table.experiment,
        task=table.task,
        model=table.model,
        method=row.method,
        title=row.title,
        seeds=len(row.done),
        runs=" ".join(record.id for record in row.done),
        metric=table.metric,
        split=table.split,
        estimate=row.estimate,
        select_seconds=_scoring_seconds(row),
        learning_rate=row.learning_rate,
        metrics=_metrics(row),
        others=other_estimates(row.done, table.split),
        differs_in=differs,
        **{name: measured[name]["over"](values) for name, values in numbers.items() if values},
    )
    if line.budget_asked and line.budget_achieved is not None:
        line.budget_off_percent = 100 * (line.budget_achieved / line.budget_asked - 1)
    return line


def _paired(row: Row, reference: Row) -> Difference | None:
    """Return the row against its reference, on the same examples; None where the row is its own."""
    return difference(row.scores, reference.scores) if reference is not row else None


#: Settings of methods that trade memory for time, and so belong to the conditions of a comparison.
TRADES = ("method.recompute_inputs",)


def differs_in(rows: list[Row]) -> dict[int, str]:
    """Return {id(row): the row's own values of every setting that the trained rows do not share}.

    A method's own settings are left out, but for those in TRADES, and so is what a method does not have.
    """
    differ = differing(row.settings for row in rows if row.trains)
    keys = [key for key in differ if key in TRADES or key.split(".")[0] != "method"]
    names = short_names(keys)
    return {
        id(row): ", ".join(f"{names[key]}={text(row.settings[key])}" for key in keys if key in row.settings)
        if row.trains
        else ""
        for row in rows
    }


def unfinished(table: Table) -> list[Unfinished]:
    """Return the runs without a result."""
    return [
        Unfinished(
            *(row.title, row.method, record.config.get("seed"), record.state),
            *(failed_phase(record), failure(record) or "", record.id),
        )
        for row in table.rows
        for record in row.unfinished
    ]


def untrained_metrics(table: Table) -> dict[str, float]:
    """Return metrics that need no training (an embedding's cosine, say), as the runs recorded them, seeds averaged."""
    recorded: dict[str, list[float]] = {}
    for row in table.rows:
        for result in row.results:
            for name, value in result.reference.items():
                if isinstance(value, int | float):
                    recorded.setdefault(name, []).append(value)
    return {name: fmean(values) for name, values in recorded.items()}


def rates(table: Table) -> list[Rate]:
    """Return the learning-rate grid, each rate that was tried."""
    tried, shown = [], {id(row) for row in table.rows}
    for row in (row for family in table.grid for row in family):
        scores, seconds = row.metric_values("validation"), sum(row.values(lambda result: result.seconds.total))
        mean, runs = fmean(scores) if scores else None, (len(row.done), len(row.unfinished))
        tried.append(Rate(row.title, row.method, row.learning_rate, mean, *runs, seconds, id(row) in shown))
    return tried


def memory_kinds(table: Table) -> list[str]:
    """Return how the memory of the shown rows was measured."""
    trained = [result for row in table.rows if row.trains for result in row.results]
    kinds = {result.memory.kind or result.memory.train.kind for result in trained}
    return sorted(kind for kind in kinds if kind)


def _metrics(row: Row) -> dict[str, float]:
    values: dict[tuple[str, str], list[float]] = {}
    for result in row.results:
        for split, metrics in result.metrics.items():
            for name, value in (metrics or {}).items():
                if value is not None:
                    values.setdefault((split, name), []).append(value)
    return {f"{split}_{name}": fmean(each) for (split, name), each in sorted(values.items())}


def _scoring_seconds(row: Row) -> float | None:
    """Return the median seconds of selection over runs that scored: reading kept scores would hide the cost."""
    seconds = row.values(lambda result: None if result.scores_from_cache else result.seconds.select)
    return median(seconds) if seconds else None


def _ratio(mine: float | None, reference: float | None) -> float | None:
    return mine / reference if mine is not None and reference else None
