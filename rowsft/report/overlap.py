"""How much the selections of importance metrics have in common, read from the saved adapters."""

import json
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

from rowsft.report.rows import Row, Table
from rowsft.report.settings import differing
from rowsft.store import Record
from rowsft.store.chosen import Selection, chosen_ids

IMPORTANCE = "method.importance"


@dataclass(frozen=True)
class Overlap:
    """Two importance metrics that chose at the same budget and otherwise equal settings.

    group: a JSON key of what the pair shares. share: of the smaller selection that the other one chose too, over all
    layers. pairs: how many pairs of runs it is the mean of. Two metrics are compared seed by seed; `first == second`
    compares the seeds of one metric with each other: how stable its choice is.
    """

    group: str
    first: str
    second: str
    share: float
    pairs: int


def overlaps(table: Table) -> list[Overlap]:
    """Return every pair of importance metrics of a table that can be compared."""
    pairs = []
    for group, rows in _groups(table).items():
        chosen = {
            str(row.settings[IMPORTANCE]): {
                record.config.get("seed"): selection
                for record in row.done
                if (selection := selected(record)) is not None
            }
            for row in rows
        }
        names = [name for name, seeds in chosen.items() if seeds]
        for at, first in enumerate(names):
            for second in names[at:]:
                shares = _shares(chosen[first], chosen[second], first == second)
                if shares:
                    pairs.append(Overlap(group, first, second, fmean(shares), len(shares)))
    return pairs


def selected(record: Record) -> Selection | None:
    """Return {(layer, kind of ids): ids} of a run's saved adapter; None when there is no readable row-SFT adapter."""
    folder = record.file("adapter")
    return None if folder is None else chosen_ids(folder)


def share(one: Selection, other: Selection) -> float:
    """Return common ids over the smaller selection's, summed over all layers."""
    common = sum(len(ids & other.get(key, set())) for key, ids in one.items())
    return common / min(sum(map(len, one.values())), sum(map(len, other.values())))


def _groups(table: Table) -> dict[str, list[Row]]:
    """Return rows that differ in the metric alone, with at least two metrics.

    A setting that a metric does not use (l2 reads no calibration batches) is not one that it differs in.
    """
    rows = [row for row in table.rows if IMPORTANCE in row.settings]
    everywhere = set.intersection(*(set(row.settings) for row in rows)) if rows else set()
    optional = [key for key in differing(row.settings for row in rows) if key not in everywhere]
    groups: dict[str, list[Row]] = {}
    # Rows that have all of these settings make the groups, and the others join those that they fit in.
    for row in sorted(rows, key=lambda row: not row.settings.keys() >= set(optional)):
        mine = {key: row.settings[key] for key in (*everywhere, *optional) if key in row.settings and key != IMPORTANCE}
        whole = row.settings.keys() >= set(optional)
        fitting = [] if whole else [key for key in groups if mine.items() <= json.loads(key).items()]
        for key in fitting or [json.dumps(mine, sort_keys=True)]:
            groups.setdefault(key, []).append(row)
    return {group: rows for group, rows in groups.items() if len(rows) > 1}


def _shares(one: dict, other: dict, same: bool) -> list[float]:
    if same:
        return [share(a, b) for a, b in combinations(one.values(), 2)]
    return [share(one[seed], other[seed]) for seed in one if seed in other]
