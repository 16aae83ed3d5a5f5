"""Records gathered into tables: one per (experiment, task, model), one row per setting, seeds together."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean

from rowsft.report.predictions import Scored, over_examples, scored
from rowsft.report.statistics import Estimate, over_seeds
from rowsft.store import Record

METHOD_ORDER = ("none", "head", "row_sft", "lora", "dora", "full")
METHOD_TITLES = {
    "none": "no training",
    "head": "head only",
    "row_sft": "row-SFT",
    "lora": "LoRA",
    "dora": "DoRA",
    "full": "full fine-tuning",
}
LEARNING_RATE = "trainer.learning_rate"

#: Trainer settings that say how a run is watched or reported, not how it is trained.
WATCHING = frozenset(
    f"trainer.{name}"
    for name in ("evaluate", "eval_batch_size", "memory_probe_steps", "timing_warmup_steps", "logging_steps")
)


def flatten(node, prefix: str = "") -> dict[str, object]:
    """Nested mappings as {"a.b": value}; lists and an empty mapping stay values."""
    if not isinstance(node, dict) or not node:
        return {prefix: node} if prefix else {}
    return {
        name: leaf
        for key, value in node.items()
        for name, leaf in flatten(value, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def named(config: dict, group: str) -> str:
    """The name a config group goes by: its `name`, else its source or class."""
    part = config.get(group)
    if isinstance(part, dict):
        return str(part.get("name") or part.get("source") or part.get("_target_", "?").rsplit(".", 1)[-1])
    return str(part) if part is not None else "?"


def settings_of(record: Record) -> dict[str, object]:
    """Every setting that determines a run's result but its seeds, flat."""
    return {key: value for key, value in flatten(record.identity).items() if key.rsplit(".", 1)[-1] != "seed"}


def order_of(method: str) -> tuple[int, str]:
    """Sort key of methods: the usual five from nothing to everything, then the others by name."""
    return (METHOD_ORDER.index(method) if method in METHOD_ORDER else len(METHOD_ORDER), method)


@dataclass
class Row:
    """One setting: its finished runs (`done`, one per seed) and the others, which have no result (`unfinished`)."""

    method: str
    settings: dict[str, object]
    split: str = "test"
    done: list[Record] = field(default_factory=list)
    unfinished: list[Record] = field(default_factory=list)
    variant: str = ""

    @property
    def title(self) -> str:
        """The method as a reader knows it, with what tells it from the table's other rows of that method."""
        title = METHOD_TITLES.get(self.method, self.method)
        return f"{title} ({self.variant})" if self.variant else title

    @property
    def trains(self) -> bool:
        """Whether anything is trained: all but `none`."""
        return self.method != "none"

    @property
    def results(self) -> list[dict]:
        """The finished attempt of every seed."""
        return [record.result for record in self.done]

    @property
    def learning_rate(self) -> float | None:
        """The learning rate, None where nothing is trained."""
        return self.settings.get(LEARNING_RATE) if self.trains else None

    def values(self, *path: str) -> list[float]:
        """The numbers at this path of every finished attempt, those not measured left out."""
        found = [dig(result, *path) for result in self.results]
        return [value for value in found if value is not None]

    def metric_values(self, split: str) -> list[float]:
        """The primary metric of every seed on a split."""
        found = [primary(result, split) for result in self.results]
        return [value for value in found if value is not None]

    @cached_property
    def scores(self) -> dict[int, Scored]:
        """{seed: scored test examples} of the seeds whose predictions are there."""
        found = {record.config.get("seed"): scored(record, self.split) for record in self.done}
        return {seed: scores for seed, scores in found.items() if scores is not None}

    @cached_property
    def estimate(self) -> Estimate | None:
        """The primary metric on the table's split, with its interval."""
        values = self.metric_values(self.split)
        if len(values) >= 2:
            return over_seeds(values)
        return over_examples(values[0], next(iter(self.scores.values()), None)) if values else None


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
    def records(self) -> list[Record]:
        """Every run behind the table, the unchosen learning rates too."""
        rows = [*self.rows, *(row for family in self.grid for row in family if row not in self.rows)]
        return [record for row in rows for record in [*row.done, *row.unfinished]]

    def row(self, method: str) -> Row | None:
        """The first row of a method that has a result, if any: what the others are held against."""
        return next((row for row in self.rows if row.method == method and row.done), None)


def gather(records: list[Record], experiments: list[str | None]) -> list[Table]:
    """The tables of these experiments (None: runs of no experiment), in order of experiment, task and model."""
    found = []
    for experiment in experiments:
        mine = [r for r in records if experiment in r.experiments or (experiment is None and not r.experiments)]
        keys = sorted({(named(r.config, "task"), named(r.config, "model")) for r in mine})
        for task, model in keys:
            here = [r for r in mine if (named(r.config, "task"), named(r.config, "model")) == (task, model)]
            found.append(_table(experiment or "", task, model, here))
    return found


def dig(node, *path: str):
    """The value at a path of nested mappings, None where the path ends early."""
    for key in path:
        node = node.get(key) if isinstance(node, dict) else None
    return node


def primary(result: dict, split: str) -> float | None:
    """The primary metric of one attempt on a split, None where it was not evaluated."""
    return dig(result, "metrics", split, result.get("primary_metric"))


def _table(experiment: str, task: str, model: str, records: list[Record]) -> Table:
    results = [record.result for record in records if record.result]
    split = "test" if any(primary(result, "test") is not None for result in results) else "validation"
    metric = next((result["primary_metric"] for result in results if result.get("primary_metric")), "metric")
    higher = next((result["higher_is_better"] for result in results if "higher_is_better" in result), True)
    rows: dict[str, Row] = {}
    for record in sorted(records, key=lambda r: (str(r.config.get("seed")), r.id)):
        settings = settings_of(record)
        key = json.dumps(settings, sort_keys=True)
        row = rows.setdefault(key, Row(named(record.config, "method"), settings, split))
        (row.done if record.result else row.unfinished).append(record)
    shown, grid = _choose(list(rows.values()), higher)
    _name_variants(shown)
    shown.sort(key=lambda row: (*order_of(row.method), row.variant))
    notes = next((r.experiment_notes[experiment] for r in records if r.experiment_notes.get(experiment)), {})
    return Table(experiment, task, model, metric, higher, split, shown, grid, notes)


def _choose(rows: list[Row], higher: bool) -> tuple[list[Row], list[list[Row]]]:
    """Of rows that differ in the learning rate alone, show the best by the validation split; keep the grid beside."""
    families: dict[str, list[Row]] = {}
    for row in rows:
        families.setdefault(family_of(row), []).append(row)
    shown, grid = [], []
    for family in families.values():
        best = best_on_validation(family, higher)
        if len(family) > 1 and best is not None:
            grid.append(sorted(family, key=lambda row: row.settings[LEARNING_RATE]))
            shown.append(best)
        else:
            shown += family
    return shown, sorted(grid, key=lambda family: order_of(family[0].method))


def family_of(row: Row) -> str:
    """A key that rows share when they train alike in all but the learning rate."""
    kept = {key: value for key, value in row.settings.items() if key != LEARNING_RATE and key not in WATCHING}
    return json.dumps(kept, sort_keys=True)


def best_on_validation(rows: list[Row], higher: bool) -> Row | None:
    """The row with the best mean validation metric; None when none has one."""
    able = [row for row in rows if row.metric_values("validation")]
    pick = max if higher else min
    return pick(able, key=lambda row: fmean(row.metric_values("validation"))) if able else None


def _name_variants(rows: list[Row]) -> None:
    for row in rows:
        others = [other for other in rows if other.method == row.method]
        keys = sorted(key for key in differing(others) if key not in WATCHING)
        row.variant = ", ".join(f"{short(key)}={row.settings.get(key)}" for key in keys)


def differing(rows: list[Row]) -> list[str]:
    """The settings that are not the same in all rows, sorted."""
    keys = sorted({key for row in rows for key in row.settings})
    return [key for key in keys if len({json.dumps(row.settings.get(key), sort_keys=True) for row in rows}) > 1]


def short(key: str) -> str:
    """A setting's name without its group."""
    return key.split(".", 1)[-1]
