"""What lm-evaluation-harness found of two runs: numbers have one name where they may be compared, else two."""

from rowsft.record import HarnessResult
from rowsft.report.harness_samples import scored_samples
from rowsft.report.harness_setups import Names, metrics, newest
from rowsft.report.predictions import Difference, difference
from rowsft.store import Record

Numbers = dict[str, float | int | None]


def harness_numbers(a: Record, b: Record) -> tuple[Numbers, Numbers, dict[str, Difference]]:
    """Return {"lm_eval.<task>.<metric>": value} of each run, and b - a on the same examples where both have them.

    Of several evaluations that may be compared with each other, the newest counts.
    """
    names = Names([a, b])
    sides = [_results(record, names) for record in (a, b)]
    paired = {}
    for name in sides[0].keys() & sides[1].keys():
        first, second = (scored_samples(record, *side[name]) for record, side in zip((a, b), sides, strict=True))
        # One pair: seeds may differ between the sides, and the pairing is over examples alone.
        pair = difference({0: second}, {0: first}) if first is not None and second is not None else None
        if pair is not None:
            paired[name] = pair
    numbers = [{name: result.metrics[key] for name, (result, key) in side.items()} for side in sides]
    return numbers[0], numbers[1], paired


def _results(record: Record, names: Names) -> dict[str, tuple[HarnessResult, str]]:
    return {
        names.key(setup, key): (result, key)
        for setup, result in newest(record.result).items()
        for key in metrics(result)
    }
