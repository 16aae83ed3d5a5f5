"""A finished run as a side of a comparison. Names are the paths in its record (docs/architecture.md)."""

from rowsft.record import Attempt, plain
from rowsft.report.compare.inputs import Side, not_finite_note, numbers_in
from rowsft.report.compare.units import has_unit
from rowsft.report.listing import entry
from rowsft.report.settings import flatten
from rowsft.store import Record

_COUNTS = ("adapter", "head", "total_trainable", "base", "budget_asked", "budget_achieved")
#: What is meant to be a number, beside metrics and what has a unit in its name.
_UNITLESS = frozenset({"train_loss_final", "tokens_per_second", *(f"parameters.{name}" for name in _COUNTS)})


def side(record: Record) -> Side:
    """Return the latest finished attempt of a run.

    Raises UserError for what is no number where one is meant.
    """
    result, about = record.result, entry(record)
    assert result is not None, "a run is compared once it is finished"
    source = str(record.folder / "record.json")
    measured = _measured(result)
    return Side(
        kind="run",
        name=str(record.folder),
        title=(
            f"{about.method}, {about.task} on {about.model}, seed {about.seed}; "
            f"attempt {result.attempt} of {(result.started_at or '?')[:16].replace('T', ' ')}"
        ),
        settings=flatten(record.identity),
        environment=_environment(result),
        numbers=numbers_in(measured, source, _means_number),
        notes=not_finite_note(measured, result.non_finite or []),
        record=record,
    )


def _environment(result: Attempt) -> dict[str, object]:
    """Return machine and packages, and what else moves clocks or bytes. Seeds are left out: they are settings."""
    environment = {key: value for key, value in (plain(result.environment) or {}).items() if key != "seeds"}
    return {
        **flatten(environment),
        "concurrent_jobs": result.concurrent_jobs or 1,
        # Selection that read kept scores took no time for scoring.
        "scores_from_cache": bool(result.scores_from_cache),
        # How memory and energy were measured is told in texts beside the numbers.
        **{
            name: text
            for part in ("memory", "energy")
            for name, text in _part(result, part).items()
            if isinstance(text, str)
        },
    }


def _measured(result: Attempt) -> dict[str, object]:
    peaks = {name: value for name, value in _part(result, "memory").items() if "peak" in name.rpartition(".")[2]}
    return {
        **_part(result, "metrics"),
        "train_loss_final": result.train_loss_final,
        **_part(result, "parameters"),
        **peaks,
        **_part(result, "seconds"),
        # Minimum and maximum are single steps.
        **{f"step_seconds.{name}": getattr(result.step_seconds, name) for name in ("p25", "median", "p75", "p95")},
        **{f"data_seconds.{name}": getattr(result.data_seconds, name) for name in ("median", "total")},
        "tokens_per_second": result.tokens_per_second,
        # Named where no GPU counts it, too: a limit on it then says that it was not measured.
        **{f"energy.{phase}_joules": None for phase in ("select", "train", "evaluate")},
        **_part(result, "energy"),
    }


def _means_number(name: str) -> bool:
    return has_unit(name) or name in _UNITLESS or name.startswith("metrics.")


def _part(result: Attempt, name: str) -> dict[str, object]:
    return flatten(plain(getattr(result, name)) or {}, name)
