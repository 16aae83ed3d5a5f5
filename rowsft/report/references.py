"""The row that another is held against: LoRA or full fine-tuning with everything else that was asked the same."""

from dataclasses import dataclass
from typing import Any

from rowsft.report.settings import differing, text_of
from rowsft.report.sweeps import Sweep

#: Every other row is held against these, on the same test examples and in cost.
REFERENCES = ("lora", "full")


@dataclass(frozen=True)
class Reference:
    """The row that another is held against, or why there is none: `none`, `several`; `itself` for a reference."""

    row: Any
    reason: str = ""


class References:
    """Finds references among the rows of a table; a row has `method`, `settings` and `done`."""

    def __init__(self, sweep: Sweep):
        self._sweep = sweep
        # method -> the settings that a row has -> their values -> rows: rows are looked up, not searched for.
        self._index: dict[str, dict[tuple[str, ...], dict[tuple[str, ...], list]]] = {}
        self._values = {id(row): _texts(sweep.values(row)) for row in sweep.rows}
        self._tells: dict[str, list[str]] = {}
        for row in sweep.rows:
            if row.done:
                values = self._values[id(row)]
                tables = self._index.setdefault(row.method, {})
                tables.setdefault(tuple(values), {}).setdefault(tuple(values.values()), []).append(row)

    def of(self, row, method: str) -> Reference:
        """Return the reference of `row`. A row of `method` itself is its own."""
        if row.method == method:
            return Reference(row, "itself") if row.done else Reference(None, "none")
        candidates = self._alike(row, method)
        if not candidates:
            return Reference(None, "none")
        if len({tuple(self._values[id(other)].items()) for other in candidates}) > 1:
            # Full fine-tuning has no budget: none of several LoRA budgets is its own.
            return Reference(None, "several")
        nearest = candidates[0] if len(candidates) == 1 else self._nearest(row, candidates)
        return Reference(nearest) if nearest is not None else Reference(None, "several")

    def has(self, method: str) -> bool:
        """Return whether the table has a finished row of the method."""
        return method in self._index

    def _nearest(self, row, candidates: list):
        """Return the one that has most settings in common with `row`; None where several have as many.

        Where the method has one learning rate left, that is its own choice; of several, the row's own counts.
        """
        method = candidates[0].method
        if method not in self._tells:
            rows = [other.settings for other in self._sweep.rows if other.method == method]
            self._tells[method] = differing(rows, absent=True)
        mine = _texts({key: row.settings[key] for key in self._tells[method] if key in row.settings})
        shared = [
            sum(text_of(other.settings.get(key)) == text for key, text in mine.items()) if mine else 0
            for other in candidates
        ]
        most = max(shared)
        return candidates[shared.index(most)] if shared.count(most) == 1 else None

    def _alike(self, row, method: str) -> list:
        """Return the rows of the method with the same value of every differing setting that both have."""
        mine, alike = self._values[id(row)], []
        for keys, table in self._index.get(method, {}).items():
            if all(key in mine for key in keys):
                alike += table.get(tuple(mine[key] for key in keys), [])
            else:
                for values, rows in table.items():
                    if all(mine.get(key, value) == value for key, value in zip(keys, values, strict=True)):
                        alike += rows
        return alike


def _texts(settings) -> dict[str, str]:
    return {key: text_of(value) for key, value in settings.items()}
