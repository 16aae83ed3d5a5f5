"""Records gathered into tables: one per (experiment, task, model), one row per setting, seeds together."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from statistics import fmean
from typing import TypeVar

from rowsft import formulas
from rowsft.method_info import MethodInfo
from rowsft.rates import order
from rowsft.record import Attempt
from rowsft.report.damaged import or_none
from rowsft.report.groups import groups
from rowsft.report.predictions import Scored, over_examples, scored
from rowsft.report.references import References
from rowsft.report.settings import ALPHA, LEARNING_RATE, WATCHING, determining, method_info, primary, without_seeds
from rowsft.report.statistics import Estimate, over_seeds
from rowsft.report.sweeps import Sweep, variants
from rowsft.store import Record

Value = TypeVar("Value")


def _readable(record: Record, split: str) -> Scored | None:
    return or_none(partial(scored, record, split), record, "predictions")


@dataclass
class Row:
    """One setting: its finished runs (`done`, one per seed) and the others, which have no result (`unfinished`).

    repeats: runs of a setting and seed that another run counts for (full fine-tuning, once per budget by an older
    version).
    """

    info: MethodInfo
    settings: dict[str, object]
    split: str = "test"
    done: list[Record] = field(default_factory=list)
    unfinished: list[Record] = field(default_factory=list)
    repeats: list[Record] = field(default_factory=list)
    variant: str = ""
    read: Callable[[Record, str], Scored | None] = _readable

    @property
    def method(self) -> str:
        """The method's name in settings and records."""
        return self.info.name

    @property
    def title(self) -> str:
        """The method as a reader knows it, with what tells it from the table's other rows of that method."""
        return f"{self.info.title} ({self.variant})" if self.variant else self.info.title

    @property
    def trains(self) -> bool:
        """Whether anything is trained."""
        return self.info.trains

    @property
    def results(self) -> list[Attempt]:
        """The finished attempt of every seed."""
        return [record.result for record in self.done if record.result]

    @cached_property
    def size(self) -> int | None:
        """Trainable parameters that were asked for, or that it has, the head left out; None where not recorded."""
        names = ("budget_asked", "budget_achieved", "adapter")
        sizes = (getattr(result.parameters, name) for name in names for result in self.results)
        return next((size for size in sizes if size is not None), None)

    @cached_property
    def family(self) -> str:
        """A key that rows share when they train alike in all but the learning rate."""
        kept = {key: value for key, value in self.settings.items() if key != LEARNING_RATE and key not in WATCHING}
        return json.dumps(kept, sort_keys=True)

    @property
    def learning_rate(self) -> float | None:
        """The learning rate, None where nothing is trained."""
        rate = self.settings.get(LEARNING_RATE)
        return float(rate) if self.trains and isinstance(rate, int | float) else None

    def values(self, read: Callable[[Attempt], Value | None]) -> list[Value]:
        """Return what `read` takes from every finished attempt, without what was not measured."""
        values = [read(result) for result in self.results]
        return [value for value in values if value is not None]

    def metric_values(self, split: str) -> list[float]:
        """Return the primary metric of every seed on a split."""
        values = [primary(result, split) for result in self.results]
        return [value for value in values if value is not None]

    @cached_property
    def scores(self) -> dict[int | None, Scored]:
        """{seed: scored test examples} of the seeds whose predictions are there."""
        scored = {record.config.get("seed"): self.read(record, self.split) for record in self.done}
        return {seed: scores for seed, scores in scored.items() if scores is not None}

    @cached_property
    def estimate(self) -> Estimate | None:
        """The primary metric on the table's split, with its interval."""
        values = self.metric_values(self.split)
        if not values:
            return None
        bounds = formulas.bounds(self.results[0].primary_metric or "")
        if len(values) >= 2:
            return over_seeds(values).within(bounds)
        return over_examples(values[0], next(iter(self.scores.values()), None)).within(bounds)


@dataclass
class Table:
    """Rows that may be compared with each other. `rows` are shown; `grid` holds every learning rate that was tried."""

    experiment: str
    task: str
    model: str
    metric: str
    higher_is_better: bool
    split: str
    rows: list[Row]
    grid: list[list[Row]]
    notes: dict

    @property
    def tuned(self) -> tuple[str, ...]:
        """The settings that a tuning stage, where there was one, chose for each row by itself."""
        tune = self.notes.get("tune")
        return (LEARNING_RATE, ALPHA) if isinstance(tune, dict) and tune.get("alpha") else (LEARNING_RATE,)

    @property
    def records(self) -> list[Record]:
        """Every run behind the table, the unchosen learning rates too."""
        shown = {id(row) for row in self.rows}
        rows = [*self.rows, *(row for family in self.grid for row in family if id(row) not in shown)]
        return [record for row in rows for record in [*row.done, *row.unfinished, *row.repeats]]

    @cached_property
    def infos(self) -> dict[str, MethodInfo]:
        """{method: its metadata}."""
        return {row.method: row.info for row in self.rows}

    @cached_property
    def sweep(self) -> Sweep:
        """What differs between the rows that have a result, the method and its own settings left out."""
        return Sweep(row for row in self.rows if row.done)

    @cached_property
    def references(self) -> References:
        """What each row is held against."""
        return References(self.sweep)


def gather(records: list[Record], experiments: list[str | None]) -> list[Table]:
    """Return the tables of these experiments (None: runs of no experiment), in order of experiment, task and model."""
    members: dict[str | None, list[Record]] = {}
    for record in records:
        names: list[str | None] = [*record.experiments]
        for name in names or [None]:
            members.setdefault(name, []).append(record)
    read = once(_readable)
    return [
        _table(experiment or "", task, model, here, read)
        for experiment in experiments
        for (task, model), here in groups(members.get(experiment, [])).items()
    ]


def once(read: Callable) -> Callable:
    """Return a `read(record, split)` that reads each file once, however many tables a run stands in."""
    known: dict[tuple[str, str], Scored | None] = {}

    def remembered(record: Record, split: str) -> Scored | None:
        if (record.id, split) not in known:
            known[record.id, split] = read(record, split)
        return known[record.id, split]

    return remembered


def _table(experiment: str, task: str, model: str, records: list[Record], read: Callable) -> Table:
    results = [record.result for record in records if record.result]
    split = "test" if any(primary(result, "test") is not None for result in results) else "validation"
    metric = next((result.primary_metric for result in results if result.primary_metric), "metric")
    higher = results[0].higher_is_better if results else True
    shown, grid = _choose(_rows(records, split, read), higher)
    notes: dict = next((r.experiment_notes[experiment] for r in records if r.experiment_notes.get(experiment)), {})
    names = variants(shown)
    brief = {key: without_rate(name) for key, name in names.items()}
    if notes.get("tune") and len({(row.method, brief[id(row)]) for row in shown}) == len(shown):
        # A tuning stage gave each row a rate of its own, which has a column.
        names = brief
    for row in shown:
        row.variant = names[id(row)]
    for family in grid:
        # Of two budgets' grids each says whose it is.
        whose = without_rate(next(row.variant for row in family if id(row) in names))
        for row in family:
            row.variant = row.variant or whose
    grid.sort(key=lambda family: (family[0].info.place, natural(without_rate(family[0].variant))))
    shown.sort(key=lambda row: (row.info.place, natural(row.variant)))
    return Table(experiment, task, model, metric, higher, split, shown, grid, notes)


def _rows(records: list[Record], split: str, read: Callable) -> list[Row]:
    """Return one row a setting, by seed; of runs that are the same but for what cannot change them, one counts."""
    rows: dict[str, Row] = {}
    seen: set[str] = set()
    # A run with a result comes first: an unfinished one of the same setting and seed then counts for nothing.
    for record in sorted(records, key=lambda r: (r.result is None, str(r.config.get("seed")), r.id)):
        determined = determining(record)
        settings = without_seeds(determined)
        key, run = (json.dumps(part, sort_keys=True) for part in (settings, determined))
        row = rows.setdefault(key, Row(method_info(record), settings, split, read=read))
        if run in seen:
            row.repeats.append(record)
        else:
            seen.add(run)
            (row.done if record.result else row.unfinished).append(record)
    return list(rows.values())


def without_rate(variant: str, keys: Sequence[str] = (LEARNING_RATE,)) -> str:
    """Return a row's variant without its learning rate, or without what else was tuned."""
    own = {key.rpartition(".")[2] for key in keys}
    return ", ".join(part for part in variant.split(", ") if part.partition("=")[0].rpartition(".")[2] not in own)


def natural(text: str) -> list[tuple[int, float, str]]:
    """Return a sort key by which rows=4 comes before rows=16."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", text)
    return [(0, float(part), "") if index % 2 else (1, 0.0, part) for index, part in enumerate(parts)]


def _choose(rows: list[Row], higher: bool) -> tuple[list[Row], list[list[Row]]]:
    """Show, of rows that differ in the learning rate alone, the best by the validation split; keep the grid beside."""
    families: dict[str, list[Row]] = {}
    for row in rows:
        families.setdefault(row.family, []).append(row)
    shown, grid = [], []
    for family in families.values():
        best = best_on_validation(family, higher)
        if len(family) > 1 and best is not None:
            grid.append(sorted(family, key=lambda row: row.learning_rate or 0))
            shown.append(best)
        else:
            shown += family
    return shown, grid


def best_on_validation(rows: list[Row], higher: bool) -> Row | None:
    """Return the row with the best mean validation metric, of equal ones that of the lowest rate; None without any."""
    sign = 1 if higher else -1
    scores = [(sign * fmean(values), row) for row in rows if (values := row.metric_values("validation"))]
    return max(scores, key=lambda pair: order(pair[0], pair[1].learning_rate or 0), default=(0, None))[1]
