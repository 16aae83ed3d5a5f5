"""Metrics of two runs on the same examples: the paired interval of their difference."""

from rowsft.errors import UserError
from rowsft.report.damaged import ERRORS
from rowsft.report.predictions import Difference, Scored, difference, scored
from rowsft.store import Record


def paired_differences(a: Record, b: Record) -> dict[str, Difference]:
    """{"metrics.<split>.<metric>": b - a} of the metrics that can be computed again from the predictions of both runs.

    A metric whose examples are not the same (by id) on both sides has none. Raises UserError for a damaged file.
    """
    differences: dict[str, Difference] = {}
    if a.result is None or b.result is None:
        return differences
    for split, metrics in b.result.metrics.items():
        for name in metrics or {}:
            values = [(result.metrics.get(split) or {}).get(name) for result in (a.result, b.result)]
            if not all(isinstance(value, int | float) for value in values):
                continue
            first, second = _scored(a, split, name), _scored(b, split, name)
            # One pair: seeds may differ between the sides, and the pairing is over examples alone.
            pair = difference({0: second}, {0: first}) if first is not None and second is not None else None
            if pair is not None:
                differences[f"metrics.{split}.{name}"] = pair
    return differences


def _scored(record: Record, split: str, name: str) -> Scored | None:
    try:
        return scored(record, split, name)
    except UserError:
        raise
    except ERRORS as error:
        raise UserError(
            f"{record.file('predictions')} is damaged ({type(error).__name__}: {error}); expected one JSON object an "
            "example: copy it anew, or remove it to compare without intervals"
        ) from error
