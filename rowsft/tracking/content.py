"""What a dashboard shows of an attempt, as plain numbers and tables worked out of its record and files."""

import csv
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rowsft.output.quantities import MIB
from rowsft.record import Attempt, LedgerMoment, plain
from rowsft.store.chosen import chosen_ids
from rowsft.store.confined import confined
from rowsft.tracking import names

#: What reading a file of the wrong content raises.
DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error)
Row = list[Any]
#: Phases of a training step in the ledger.
_STEP = ("forward", "backward", "optimizer_step")
_COSTS = ("seconds", "step_seconds", "data_seconds", "tokens_per_second", "memory", "energy", "parameters")
#: The number of a block in a layer's name, and the layer's name within its block.
_BLOCK = re.compile(r"(?:^|.*?\.)(\d+)\.(.+)")


def point(row: Mapping[str, Any]) -> tuple[int, dict[str, float]]:
    """Return the optimizer step and the values by name of one point of the curves, without what is missing."""
    values = {_curve(name): float(value) for name, value in row.items() if name != "step" and value not in (None, "")}
    return int(row["step"]), values


def _curve(column: str) -> str:
    held_out = column.removeprefix("validation_")
    return f"{names.TRAIN if held_out == column else names.VALIDATION}{held_out}"


def curve(attempt: Attempt, folder: Path) -> list[tuple[int, dict[str, float]]]:
    """Return the recorded curves as `point` gives them. Raises one of DAMAGED for a damaged file."""
    return [point(row) for row in _rows(attempt, folder, "curve")]


def final_numbers(attempt: Attempt) -> dict[str, int | float]:
    """Return the numbers that a finished attempt ends in, under flat names such as metrics/test/accuracy."""
    flat: dict[str, int | float] = {}

    def walk(name: str, node: Any) -> None:
        if isinstance(node, Mapping):
            for key, value in node.items():
                walk(f"{name}/{key}", value)
        elif isinstance(node, int | float) and not isinstance(node, bool):
            flat[name] = node

    for name in ("metrics", *_COSTS, "reference"):
        walk(name, plain(getattr(attempt, name)))
    for name in ("before", "after", "csd_rel"):
        walk(f"forgetting/{name}", plain(getattr(attempt.forgetting, name)))
    return flat | _results(attempt)


def _results(attempt: Attempt) -> dict[str, int | float]:
    """The numbers that every task has, under names that are alike for all: a dashboard compares runs by them."""
    # The split that a report compares: test, unless only another was evaluated.
    split = next((name for name in ("test", *reversed(attempt.metrics)) if attempt.metrics.get(name)), None)
    metrics = attempt.metrics[split] or {} if split else {}
    peak = attempt.memory.train.peak_allocated_bytes
    moment = _peak_of_step(attempt)
    numbers = {
        names.PRIMARY: metrics.get(attempt.primary_metric or ""),
        names.HELD_OUT_LOSS: metrics.get("loss"),
        names.TRAIN_PEAK: None if peak is None else peak / MIB,
        **{names.memory_at_peak(part): size / MIB for part, size in _parts(moment).items()},
    }
    return {name: value for name, value in numbers.items() if value is not None}


def _peak_of_step(attempt: Attempt) -> LedgerMoment | None:
    moments = [moment for phase, moment in attempt.memory.ledger.items() if phase in _STEP]
    return max(moments, key=lambda moment: moment.peak_bytes or 0, default=None)


def _parts(moment: LedgerMoment | None) -> dict[str, float]:
    return {part: size for part, size in (moment.parts if moment else {}).items() if size is not None}


def memory_step(attempt: Attempt, folder: Path) -> list[dict[str, float]]:
    """Return one dict an event of the recorded training step: the event's number, and MiB by part.

    Raises one of DAMAGED for a damaged file.
    """
    series = {f"{part}_bytes": names.memory_step(part) for part in names.PARTS}
    return [
        {names.MEMORY_EVENT: int(row["event"]), **{series[key]: int(row[key]) / MIB for key in series if row.get(key)}}
        for row in _rows(attempt, folder, "memory")
    ]


def ledger_rows(attempt: Attempt) -> list[Row]:
    """Return the ledger as rows of names.LEDGER_COLUMNS: at every phase's peak what each part held."""
    return [
        [phase, part, size / MIB]
        for phase, moment in attempt.memory.ledger.items()
        for part, size in {**_parts(moment), "unattributed": moment.unattributed_bytes}.items()
        if size is not None
    ]


def selection_rows(attempt: Attempt, folder: Path) -> list[Row]:
    """Return rows of names.SELECTION_COLUMNS: how many rows and columns of every layer a row-SFT adapter trains."""
    adapter = file_of(attempt, folder, "adapter")
    chosen = chosen_ids(adapter) if adapter else None
    counts: dict[str, dict[str, int]] = {}
    for (layer, kind), ids in (chosen or {}).items():
        counts.setdefault(layer, {})[kind] = len(ids)
    rows: list[Row] = []
    for layer, sizes in counts.items():
        match = _BLOCK.fullmatch(layer)
        block, module = (int(match[1]), match[2]) if match else (0, layer)
        rows.append([block, module, sizes.get("ids", 0), sizes.get("column_ids", 0), layer])
    return sorted(rows)


def file_of(attempt: Attempt, folder: Path, name: str) -> Path | None:
    """Return where the attempt's file of that name lies in the run's `folder`; None where there is none."""
    entry = attempt.files.get(name)
    path = confined(folder, entry.path) if entry and entry.path else None
    return path if path and path.exists() else None


def _rows(attempt: Attempt, folder: Path, name: str) -> list[dict[str, str]]:
    path = file_of(attempt, folder, name)
    if path is None:
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))
