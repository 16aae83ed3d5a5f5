"""Where the time went: the seconds of every phase, the spread of the steps, the wait for data, and the energy."""

from statistics import median

from rowsft.report.rows import Row

TITLE = "Where the time went (seconds, medians over seeds; waiting for data is part of training)"
#: Phase in the record -> column.
_PHASES = {
    "data": "read data",
    "load": "load model",
    "select": "select",
    "attach": "attach",
    "train": "train",
    "evaluate": "evaluate",
    "save": "save",
    "measure": "measure",
    "total": "total",
}
_NONE = "–"


def clock_numbers(row: Row) -> dict[str, float | None]:
    """Costs in time of a row, medians over seeds; None for what was not measured. Units are in the names."""
    return {
        **{f"step_{name}_seconds": median_of(row, "step_seconds", name) for name in ("p25", "p75", "min", "max")},
        "data_wait_seconds": median_of(row, "data_seconds", "total"),
        **{f"{phase}_seconds": median_of(row, "seconds", phase) for phase in _PHASES if phase != "select"},
        **{f"{phase}_joules": median_of(row, "energy", f"{phase}_joules") for phase in ("select", "train", "evaluate")},
    }


def clock_block(lines: list[dict]) -> list[tuple[str, list[dict[str, str]]]]:
    """The (title, rows) of the table, one row a method; energy only where a GPU counted it. Empty without any clock."""
    with_energy = any(line["train_joules"] is not None for line in lines)
    rows = [_columns(line, with_energy) for line in lines if line["total_seconds"] is not None]
    return [(TITLE, rows)] if rows else []


def _columns(line: dict, with_energy: bool) -> dict[str, str]:
    found = {"method": line["title"], "step ms [p25, p75]": _spread(line)}
    for phase, column in _PHASES.items():
        found[column] = _seconds(line[f"{phase}_seconds"])
        if phase == "train":
            found["waiting for data"] = _seconds(line["data_wait_seconds"])
    if with_energy:
        found["training energy kJ"] = _NONE if line["train_joules"] is None else f"{line['train_joules'] / 1000:,.2f}"
    return found


def _spread(line: dict) -> str:
    values = [line[f"step_{name}_seconds"] for name in ("median", "p25", "p75")]
    if None in values:
        return _NONE
    middle, low, high = (f"{value * 1000:,.1f}" for value in values)
    return f"{middle} [{low}, {high}]"


def _seconds(value: float | None) -> str:
    return _NONE if value is None else f"{value:,.2f}"


def median_of(row: Row, *path: str) -> float | None:
    """The median of the numbers at this path of a row's results; None where none was measured."""
    values = row.values(*path)
    return median(values) if values else None
