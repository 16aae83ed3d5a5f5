"""What a sweep's tuning stage did for the rows of a table, worked out again from its recorded runs."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from statistics import fmean
from typing import Any

from rowsft.rates import FAILED, Course, Grid, Search, Trial, as_in_ids, experiment_of_grid, grid_of, in_words, search
from rowsft.report.damaged import ERRORS
from rowsft.report.groups import key_of
from rowsft.report.rows import Row, Table, natural, without_rate
from rowsft.report.settings import ALPHA, LEARNING_RATE, determining, method_info, without_seeds
from rowsft.report.sweeps import variants
from rowsft.report.tuning import says_something, validation_score
from rowsft.store import Record

#: Heights of a score between the worst and the best of its grid.
_BARS = "▁▂▃▄▅▆▇█"
#: How long a run is: successive halving changes it.
_LENGTHS = ("trainer.steps", "trainer.epochs")


@dataclass(frozen=True)
class Tuned:
    """One row's tuning. scores: of all trials, larger is better. runs, seconds: what they cost, all lengths together.

    seeds: of the grid's runs.
    """

    row: Row
    grid: Grid
    scores: dict[Trial, float]
    seeds: tuple[int, ...]
    runs: frozenset[str]
    seconds: float
    higher_is_better: bool

    @property
    def title(self) -> str:
        """The row's."""
        return self.row.title

    @cached_property
    def search(self) -> Search:
        """How the choice was made."""
        return search(self.grid, self.scores)

    @property
    def way(self) -> Course:
        """How the rate was chosen, at the chosen alpha where several were tried."""
        return self.search.way

    @property
    def alpha(self) -> float | None:
        """The chosen alpha, None where rates alone were tried."""
        return self.search.best.alpha if self.search.best else None

    @property
    def alphas(self) -> str:
        """The chosen alpha and those tried, in words."""
        if not self.grid.alphas:
            return "-"
        chosen = "none" if self.alpha is None else f"{self.alpha:g}"
        return f"{chosen} of {', '.join(f'{alpha:g}' for alpha in self.grid.alphas)}"

    @cached_property
    def curves(self) -> dict[float | None, list[tuple[float, float | None]]]:
        """{alpha: (rate, metric on validation) of every rate tried at full length}, ascending; None where it failed.

        The only key is None where rates alone were tried.
        """
        sign = 1 if self.higher_is_better else -1
        found: dict[float | None, list[tuple[float, float | None]]] = {}
        for alpha in self.search.ways:
            points = {one.rate: self.scores[one] for one in self.scores if one.rung is None and one.alpha == alpha}
            found[alpha] = [(rate, None if points[rate] == FAILED else sign * points[rate]) for rate in sorted(points)]
        return found

    @property
    def curve(self) -> list[tuple[float, float | None]]:
        """The curve at the chosen alpha."""
        return self.curves[self.alpha if self.search.best else next(iter(self.curves))]

    @property
    def validation(self) -> float | None:
        """The metric on validation at the chosen rate."""
        return dict(self.curve).get(self.way.chosen or 0)

    @property
    def tried(self) -> str:
        """How many rates were tried, and of which kind."""
        return in_words(self.grid, self.search) + (", not complete" * (not self.search.over))

    @property
    def spark(self) -> str:
        """A bar for each rate of the curve, a cross for one that failed; the chosen one stands in brackets.

        Of several alphas each has its bars, all of one height: "8: ▁▃▂, 16: ▃[█]▅".
        """
        known = [value for curve in self.curves.values() for _, value in curve if value is not None]
        low, high = (min(known), max(known)) if known else (0.0, 0.0)
        texts = []
        for alpha, curve in self.curves.items():
            text = "" if alpha is None else f"{alpha:g}: "
            for rate, value in curve:
                share = (value - low) / (high - low) if value is not None and high > low else 1.0
                mark = "×" if value is None else _BARS[round(share * (len(_BARS) - 1))]
                text += f"[{mark}]" if Trial(rate, alpha=alpha) == self.search.best else mark
            texts.append(text)
        return ", ".join(texts)


@dataclass(frozen=True)
class WithoutRow:
    """A setting that was tuned for a table and has no row in it. failed: how many of its runs did."""

    title: str
    runs: int
    failed: int

    def __str__(self) -> str:
        if not self.failed:
            return f"{self.title}: none of {self.runs} runs on validation has a result"
        return f"{self.title}: {self.failed} of {self.runs} runs on validation failed"


class TuningRuns:
    """Every recorded run of a tuning stage, by experiment and by what else was asked."""

    def __init__(self, records: Iterable[Record]):
        self._runs: dict[tuple[str, str], dict[float, dict[int, Record]]] = {}
        for record in records:
            for name in record.experiments:
                if name.endswith(experiment_of_grid("")):
                    row = Row(method_info(record), without_seeds(determining(record)))
                    rates = self._runs.setdefault((name, row.family), {})
                    rate, seed = row.settings.get(LEARNING_RATE), record.config.get("seed")
                    if isinstance(rate, int | float) and isinstance(seed, int):
                        rates.setdefault(float(rate), {})[seed] = record

    def of(self, table: Table) -> dict[int, Tuned]:
        """Return {id(row): its tuning} for the rows of a table whose rates a tuning stage chose."""
        found = ((row, self._tuned(row, table)) for row in table.rows if row.learning_rate is not None)
        return {id(row): tuned for row, tuned in found if tuned is not None}

    def without_row(self, table: Table) -> list[WithoutRow]:
        """Return the settings of the table's experiment, task and model that were tuned, but stand in none of its rows.

        Their rates all failed, or their grids are not done yet.
        """
        shown, kinds = set(), {key_of(record) for record in table.records}
        for row in [*table.rows, *(row for family in table.grid for row in family)]:
            shown.add(row.family)
            if (asked := _grid(row, table, [*row.done, *row.unfinished])) is not None:
                shown |= set(_families(row, asked[0]).values())
        left: dict[str, list[Record]] = {}
        for (experiment, family), rates in self._runs.items():
            if experiment == experiment_of_grid(table.experiment) and family not in shown:
                for record in (one for runs in rates.values() for one in runs.values() if key_of(one) in kinds):
                    settings = without_seeds(determining(record))
                    kept = {key: value for key, value in settings.items() if key not in (*_LENGTHS, *table.tuned)}
                    left.setdefault(Row(method_info(record), kept).family, []).append(record)
        rows = [Row(method_info(runs[0]), without_seeds(determining(runs[0]))) for runs in left.values()]
        names = variants([*table.rows, *rows])
        found = []
        for row, runs in zip(rows, left.values(), strict=True):
            row.variant = without_rate(names[id(row)], table.tuned)
            failed = sum(one.state in ("failed", "oom") for one in runs)
            found.append((row, WithoutRow(row.title, len(runs), failed)))
        found.sort(key=lambda pair: (pair[0].info.place, natural(pair[0].variant)))
        return [one for _, one in found]

    def _tuned(self, row: Row, table: Table) -> Tuned | None:
        asked = _grid(row, table, row.done)
        if asked is None:
            return None
        grid, seeds = asked
        scores: dict[Trial, float] = {}
        seconds: dict[str, float] = {}
        for (rung, alpha), family in _families(row, grid).items():
            for rate, runs in self._runs.get((experiment_of_grid(table.experiment), family), {}).items():
                each = [runs.get(seed) for seed in seeds]
                values = [validation_score(one) if one is not None and says_something(one) else None for one in each]
                for one in each:
                    if one is not None:
                        seconds[one.id] = (one.result.seconds.total or 0) if one.result else 0
                if None not in values:
                    scores[Trial(rate, rung, alpha)] = fmean(value for value in values if value is not None)
        return Tuned(row, grid, scores, seeds, frozenset(seconds), sum(seconds.values()), table.higher_is_better)


def _grid(row: Row, table: Table, records: Iterable[Record]) -> tuple[Grid, tuple[int, ...]] | None:
    """Return the grid that a row of these records was tuned over, and its seeds; None where it was not."""
    asked = next((tune for record in records if (tune := tune_of(record, table.experiment))), None)
    if asked is None:
        return None
    lengths = {key.removeprefix("trainer."): row.settings.get(key) for key in _LENGTHS}
    try:
        return grid_of(asked, lengths, row.settings.get(ALPHA) is not None), tuple(asked["seeds"])
    except ERRORS:
        return None


def _families(row: Row, grid: Grid) -> dict[tuple[int | None, float | None], str]:
    """Return {(rung, alpha): the key that the runs of the row's grid share there}."""
    found = {}
    for rung, alpha in product((*range(len(grid.rungs)), None), grid.alphas or (None,)):
        changed = {} if rung is None else {f"trainer.{key}": value for key, value in grid.rungs[rung].items()}
        changed |= {} if alpha is None else {ALPHA: as_in_ids(alpha)}
        found[rung, alpha] = Row(row.info, {**row.settings, **changed}).family
    return found


def tune_of(record: Record, experiment: str) -> dict[str, Any] | None:
    """Return the settings of the tuning stage that a run of this experiment went through, None where there was none."""
    notes = record.experiment_notes.get(experiment)
    tune = notes.get("tune") if isinstance(notes, dict) else None
    return tune if isinstance(tune, dict) and tune.get("lr") else None


def total(tuned: Iterable[Tuned]) -> tuple[int, float]:
    """Return (runs, seconds) of all tunings together; runs that serve several rows count once."""
    runs: set[str] = set()
    seconds = 0.0
    for one in tuned:
        if not one.runs <= runs:
            seconds += one.seconds
        runs |= one.runs
    return len(runs), seconds
