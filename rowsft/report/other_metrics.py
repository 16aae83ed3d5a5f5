"""What a row measured on its split beside the primary metric: held-out loss, other scorings, the tasks of a mix."""

from collections.abc import Iterable
from functools import partial

from rowsft import formulas
from rowsft.report.columns import Column, Sheet, words
from rowsft.report.damaged import or_none
from rowsft.report.predictions import Scored, over_examples, scored_as
from rowsft.report.statistics import Estimate, over_seeds
from rowsft.report.written import estimated
from rowsft.store import Record

TITLE = "Other metrics"


def other_estimates(records: Iterable[Record], split: str) -> dict[str, Estimate]:
    """Return {metric: its estimate} of a row's finished runs, in their order; the primary metric is left out."""
    values: dict[str, list[tuple[Record, float]]] = {}
    for record in records:
        result = record.result
        for name, value in (result.metrics.get(split) or {}).items() if result else ():
            if value is not None and result is not None and name != result.primary_metric:
                values.setdefault(name, []).append((record, value))
    alone = {name: found[0] for name, found in values.items() if len(found) == 1}
    scores: dict[str, Scored | None] = {}
    # The file of a run's predictions is read once for all of its metrics.
    for record in {id(record): record for record, _ in alone.values()}.values():
        own = [name for name, (run, _) in alone.items() if run is record]
        scores |= or_none(partial(scored_as, record, split, own), record, "predictions") or {}
    return {
        name: (
            over_examples(found[0][1], scores.get(name)) if name in alone else over_seeds([value for _, value in found])
        ).within(formulas.bounds(name))
        for name, found in values.items()
    }


def other_metrics(lines: list, split: str, intervals: bool = True) -> Sheet:
    """Return one column a metric that any row has; without rows where there is none."""
    names = list(dict.fromkeys(name for line in lines for name in line.others))
    columns = [words("title", "method"), *(_column(name, intervals) for name in names)]
    return Sheet(f"{TITLE} on the {split} split", columns, lines if names else [])


def _column(name: str, intervals: bool) -> Column:
    return Column(name, name, lambda line: estimated(line.others.get(name), intervals=intervals))
