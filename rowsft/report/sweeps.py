"""What was swept in a table, and the rows that belong together at each of its values."""

from collections.abc import Iterable, Sequence
from functools import cached_property

from rowsft.output.quantities import text
from rowsft.report.groups import compared
from rowsft.report.settings import (
    BUDGET_SETTINGS,
    LEARNING_RATE,
    WATCHING,
    differing,
    short_names,
    text_of,
    under,
)
from rowsft.selection.budget_met import is_met

#: Stands for the budget in a table where a method was given its own size: how many parameters were asked for.
SIZE = "parameters"


def conditions(rows: Sequence) -> dict[int, dict[str, object]]:
    """Return {id(row): the settings that it must share with another row to be compared}, the learning rate left out.

    A method's own size (method.r=16) wins over the budget. Where a row has one, numbers of parameters stand for the
    budgets of all rows that have any.
    """
    kept = {
        id(row): {
            key: value
            for key, value in row.settings.items()
            if compared(key) and key != LEARNING_RATE and key not in WATCHING
        }
        for row in rows
    }
    if not any(own_size(row) for row in rows):
        return kept
    budgeted = [row for row in rows if row.info.budgeted]
    sizes = _clusters(row.size for row in budgeted if row.size)
    for row in budgeted:
        others = {key: value for key, value in kept[id(row)].items() if not under(key, BUDGET_SETTINGS)}
        kept[id(row)] = {**others, SIZE: sizes.get(row.size)}
    return kept


def own_size(row) -> bool:
    """Return whether the method was given its own size."""
    return any(row.settings.get(f"method.{size}") is not None for size in row.info.sizes)


def _clusters(sizes: Iterable[int]) -> dict[int, int]:
    """Return {number of parameters: the least of those that count as the same budget}."""
    clusters, least = {}, None
    for size in sorted(set(sizes)):
        if least is None or not is_met(least, size):
            least = size
        clusters[size] = least
    return clusters


class Sweep:
    """The settings outside the method that differ between rows (objects with `info`, `method`, `settings` and `size`).

    differs: all of them. swept: those that a method was run at several values of, with a value in common to methods.
    The others make a comparison unequal: two methods, each at a value of its own.
    """

    def __init__(self, rows: Iterable):
        self.rows = list(rows)
        self._conditions = conditions(self.rows)
        self._keys = self._differing()
        self.differs = sorted(self._keys)
        self.swept = [key for key in self.differs if self._is_swept(key)]

    def values(self, row) -> dict[str, object]:
        """Return the row's value of each setting that differs, where it has the setting."""
        mine = self._conditions[id(row)]
        return {key: mine[key] for key in self.differs if key in mine}

    @cached_property
    def groups(self) -> dict[str, list]:
        """{"rows=4, steps=100": the rows that belong to these values}; one group "" where nothing was swept.

        A row without a swept setting (full fine-tuning has no budget) belongs to each of its values.
        """
        groups: dict[tuple, list] = {}
        partial = []
        for row in self.rows:
            values = self.values(row)
            if all(key in values for key in self.swept):
                groups.setdefault(tuple((key, text_of(values[key])) for key in self.swept), []).append(row)
            else:
                partial.append((row, {(key, text_of(values[key])) for key in self.swept if key in values}))
        whole = list(groups)
        for row, mine in partial:
            fitting = [key for key in whole if mine <= set(key)] or [tuple(sorted(mine))]
            for key in fitting:
                groups.setdefault(key, []).append(row)
        names = short_names(self.swept)
        shown = {(key, text_of(value)): text(value) for row in self.rows for key, value in self.values(row).items()}
        return {
            ", ".join(f"{names[key]}={shown[key, value]}" for key, value in keys): rows for keys, rows in groups.items()
        }

    def _differing(self) -> dict[str, dict[str, set[str]]]:
        """Return {key: {method: the values it was run at}} of the settings whose values are not all the same."""
        keys: dict[str, dict[str, set[str]]] = {}
        for row in self.rows:
            for key, value in self._conditions[id(row)].items():
                keys.setdefault(key, {}).setdefault(row.method, set()).add(text_of(value))
        return {key: methods for key, methods in keys.items() if len(set().union(*methods.values())) > 1}

    def _is_swept(self, key: str) -> bool:
        methods = list(self._keys[key].values())
        several = any(len(values) > 1 for values in methods)
        common = len(set().union(*methods)) < sum(map(len, methods))
        return several and (common or len(methods) == 1)


def variants(rows: list) -> dict[int, str]:
    """Return {id(row): what tells it from the other rows of its method, "rows=4, importance=l2"}."""
    labels: dict[int, str] = {}
    by_method: dict[str, list] = {}
    for row in rows:
        by_method.setdefault(row.method, []).append(row)
    for members in by_method.values():
        all_settings = [row.settings for row in members]
        labels |= _variant_labels(members, differing(all_settings))
        if len({labels[id(row)] for row in members}) < len(members):
            # What only some of them have tells them apart.
            labels |= _variant_labels(members, differing(all_settings, absent=True))
    return labels


def _variant_labels(rows: list, keys: list[str]) -> dict[int, str]:
    names = short_names(key for key in keys if key not in WATCHING)
    return {id(row): ", ".join(f"{name}={text(row.settings.get(key))}" for key, name in names.items()) for row in rows}
