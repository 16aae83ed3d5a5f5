"""Rows whose size no budget sets (IA3 has a number for every key, value and hidden unit) beside those that have one."""

from collections.abc import Iterable

from rowsft.method_info import MethodInfo
from rowsft.output.quantities import number
from rowsft.report.rows import Row

#: What stands in the place of a budget.
FIXED = "fixed by the method"


def is_apart(info: MethodInfo, adapter: int | None, head: int | None, base: int | None) -> bool:
    """Return whether a method without a budget trains some parameters beside the head, and not the whole model."""
    if info.budgeted or not info.trains or not adapter:
        return False
    return base is None or adapter + (head or 0) < base


def apart(rows: Iterable[Row]) -> list[Row]:
    """Return the finished rows that stand apart."""
    kept = []
    for row in rows:
        sizes = [result.parameters for result in row.results]
        if sizes and is_apart(row.info, sizes[0].adapter, sizes[0].head, sizes[0].base):
            kept.append(row)
    return kept


def against(rows: Iterable[Row], budget: int | None) -> str:
    """Return "IA3 18,432 (0.083 × the budget)" of each of these rows; budget: the parameters asked of the others."""
    sizes = {row.title: row.results[0].parameters.adapter or 0 for row in rows}
    return ", ".join(
        f"{title} {size:,}" + (f" ({number(size / budget, '.2g')} × the budget)" if budget else "")
        for title, size in sizes.items()
    )


def asked(rows: Iterable[Row]) -> list[int]:
    """Return the budgets of the rows that have one, as numbers of parameters."""
    return sorted({size for row in rows for size in row.values(lambda result: result.parameters.budget_asked) if size})


def note(rows: list[Row]) -> list[str]:
    """Return what a reader must know of the rows that stand apart in a table; nothing where none does."""
    fixed = apart(rows)
    if not fixed:
        return []
    budgets = asked(rows)
    beside = f" (others were given {', '.join(f'{size:,}' for size in budgets[:4])})" if budgets else ""
    sizes = against(fixed, budgets[0] if len(budgets) == 1 else None)
    return [
        f"Trainable parameters that the method itself fixes, whatever the budget{beside}: {sizes}. Beside rows of "
        "another size they are no comparison at equal parameters."
    ]
