"""A finished run as a side of a comparison. Names are the paths in its record (docs/architecture.md)."""

from rowsft.compare.side import Side, not_finite_note, numbers_in
from rowsft.report.listing import entry
from rowsft.report.rows import dig, flatten
from rowsft.store import Record


def side(record: Record) -> Side:
    """The latest finished attempt of a run."""
    result, about = record.result, entry(record)
    return Side(
        kind="run",
        name=str(record.folder),
        title=(
            f"{about['method']}, {about['task']} on {about['model']}, seed {about['seed']}; "
            f"attempt {result['attempt']} of {str(result.get('started_at') or '?')[:16].replace('T', ' ')}"
        ),
        settings=flatten(record.identity),
        environment=_environment(result),
        numbers=_numbers(result),
        notes=not_finite_note(result.get("non_finite") or []),
        record=record,
    )


def _environment(result: dict) -> dict[str, object]:
    """Machine and packages, and what else moves clocks or bytes. Seeds are left out: they are settings."""
    environment = {key: value for key, value in (result.get("environment") or {}).items() if key != "seeds"}
    return {
        **flatten(environment),
        "concurrent_jobs": result.get("concurrent_jobs") or 1,
        # Selection that read kept scores took no time for scoring.
        "scores_from_cache": bool(result.get("scores_from_cache")),
        # How memory was measured is told in texts beside the bytes.
        **{name: text for name, text in _part(result, "memory").items() if isinstance(text, str)},
    }


def _numbers(result: dict) -> dict[str, float | int | None]:
    peaks = {name: value for name, value in _part(result, "memory").items() if "peak" in name.rpartition(".")[2]}
    return numbers_in(
        {
            **_part(result, "metrics"),
            "train_loss_final": result.get("train_loss_final"),
            **_part(result, "parameters"),
            **peaks,
            **_part(result, "seconds"),
            **{f"step_seconds.{name}": dig(result, "step_seconds", name) for name in ("median", "p95")},
            "tokens_per_second": result.get("tokens_per_second"),
        }
    )


def _part(result: dict, name: str) -> dict[str, object]:
    return flatten(result.get(name) or {}, name)
