"""The learning rates that the store's runs tried for a setting, whichever experiment they belong to."""

from collections.abc import Iterable

from rowsft.report.rows import Row, best_on_validation
from rowsft.report.settings import determining, method_info, without_seeds
from rowsft.report.tuned import TuningRuns
from rowsft.store import Record

MET, NOT_MET, UNKNOWN = "met", "not met", "not recorded"


class Grids:
    """Every rate that was tried, by what else was asked: built once for all tables."""

    def __init__(self, records: Iterable[Record]):
        self._rates: dict[str, dict[float | None, Row]] = {}
        records = list(records)
        #: Those of sweeps' tuning stages, which have rules of their own.
        self.tuning = TuningRuns(records)
        for record in records:
            if record.result:
                one = Row(method_info(record), without_seeds(determining(record)))
                self._rates.setdefault(one.family, {}).setdefault(one.learning_rate, one).done.append(record)

    def judge(self, rows: list[Row], higher_is_better: bool) -> tuple[str, str]:
        """Judge it met when every row's rate is the best on validation of its grid, and the grids are the same."""
        grids, unbest = {}, []
        for row in rows:
            pool = self._rates.get(row.family, {})
            grids[row.title] = sorted(rate for rate in pool if rate is not None)
            best = best_on_validation(list(pool.values()), higher_is_better)
            if best is None or best.learning_rate != row.learning_rate:
                unbest.append(row.title)
        sizes = {tuple(grid) for grid in grids.values()}
        if not rows:
            return UNKNOWN, "no finished run"
        if all(len(grid) < 2 for grid in sizes):
            return UNKNOWN, "the store holds no grid of learning rates for these settings"
        if len(sizes) > 1:
            return NOT_MET, "rates tried: " + few([f"{name} {_rates(grid)}" for name, grid in grids.items()])
        if unbest:
            return NOT_MET, f"not the best rate on validation: {few(unbest, ', ')}"
        return MET, f"grid {_rates(next(iter(sizes)))}"


def few(texts: list[str], between: str = "; ", most: int = 6) -> str:
    """Return the first of many texts, and how many more there are."""
    more = [f"and {len(texts) - most} more"] if len(texts) > most else []
    return between.join([*texts[:most], *more])


def _rates(grid) -> str:
    return ", ".join(f"{rate:g}" for rate in grid)
