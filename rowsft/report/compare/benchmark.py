"""A benchmark's JSON file as a side of a comparison: `rows` by shape and method, or by importance metric."""

import json
from collections.abc import Sequence
from pathlib import Path

from rowsft.errors import UserError
from rowsft.renamed import CHANNELS
from rowsft.report.compare.inputs import Side, not_finite_note, numbers_in
from rowsft.report.compare.units import has_unit
from rowsft.report.settings import flatten
from rowsft.store.files import read_json

#: A row is known by these of its fields, in this order, unless the file gives `labels` of its own.
_LABELS = ("shape", "method", "metric")
#: How often something was measured, and the extremes of single steps: no results of their own.
_ASIDE = frozenset(
    {"timed_steps", "calibration_batches", "step_seconds_min", "step_seconds_max", "tokens_per_step"}
    | {"round_seconds_low", "round_seconds_high"}
)
#: Parts of a file that are no settings; `rounds` are the single steps behind the rows.
_PARTS = frozenset({"rows", "rounds", "about", "settings", "environment", "command", "commit", "labels"})

_EXPECTED = "expected a file that one of benchmarks/ wrote"


def side(path: Path) -> Side:
    """Return the measurements in a file, named `<shape>.<method>.<field>`.

    Raises UserError for a file that is missing, unreadable, no JSON or no benchmark's, and for two rows of one label.
    """
    result = _read(path)
    labels = result.get("labels") or _LABELS
    rows = _labelled(path, result["rows"], labels)
    beside = {key: value for key, value in result.items() if key not in _PARTS}
    measured = {key: value for key, value in beside.items() if has_unit(key)}
    settings = {key: value for key, value in beside.items() if key not in measured} | (result.get("settings") or {})
    values = measured | {
        f"{label}.{name}": value
        for label, row in rows.items()
        for name, value in row.items()
        if name not in _ASIDE and name not in labels and "_over_" not in name
    }
    # The field alone says so: a method may be called after what it saves.
    numbers = numbers_in(values, str(path), lambda name: has_unit(name.rpartition(".")[2]))
    errors = [f"{label} failed: {row['error']}" for label, row in rows.items() if "error" in row]
    return Side(
        kind="benchmark",
        name=str(path),
        title=str(result.get("command") or "a benchmark"),
        # The folder that was written to is where the file lies, no setting of what it measured.
        settings=flatten({key: value for key, value in settings.items() if key != "out"}),
        environment=flatten({k: v for k, v in (result.get("environment") or {}).items() if k != "seeds"}),
        numbers=numbers,
        notes=errors + not_finite_note(values),
    )


def _read(path: Path) -> dict:
    try:
        content = read_json(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; {_EXPECTED}, or a run's id") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {_EXPECTED}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not JSON ({error}); {_EXPECTED}") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}; {_EXPECTED}: make it anew") from error
    result = content if isinstance(content, dict) else {}
    if "attempts" in result:
        raise UserError(f"{path}: the record of a run; give the run's folder, {path.parent}")
    rows = result.get("rows")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: no benchmark's results (no list of `rows`); {_EXPECTED}")
    labels = result.get("labels") or []
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise UserError(f"{path}: labels is no list of the fields that a row is known by; {_EXPECTED}")
    wrong = [key for key in ("settings", "environment") if not isinstance(result.get(key) or {}, dict)]
    if wrong:
        raise UserError(f"{path}: {wrong[0]} is no mapping; {_EXPECTED}")
    return result


def _labelled(path: Path, rows: list[dict], labels: Sequence[str]) -> dict[str, dict]:
    labelled = {}
    for number, row in enumerate(rows, 1):
        row = {**row, "method": _todays(row["method"])} if isinstance(row.get("method"), str) else row
        label = ".".join(str(row[key]) for key in labels if row.get(key) is not None)
        if row.get("method") is None and row.get("metric") is None:
            raise UserError(f"{path}: row {number} names no method or metric; {_EXPECTED}")
        if label in labelled:
            raise UserError(f"{path}: two rows are {label}; one is expected: remove one of them")
        labelled[label] = row
    return labelled


def _todays(method: str) -> str:
    """The name that a method has today: channels that were half, or row_sft in, in older files are called otherwise."""
    return " ".join(CHANNELS.get(word, word) for word in method.split(" "))
