"""Two runs, or two benchmark files, side by side: what differs in the setting, by how much the numbers moved, and
whether that is within limits. Reads records and files alone, never imports torch.

    comparison = compare("3f2a", "9c01", "runs", ["test.accuracy=-0.01", "step_seconds.median=+10%"])
    comparison.within

May import report and store, like the rest of this room.
"""

from dataclasses import dataclass
from pathlib import Path

from rowsft.errors import UserError, shortened
from rowsft.report.compare import benchmark, run
from rowsft.report.compare.harness import harness_numbers
from rowsft.report.compare.inputs import Side
from rowsft.report.compare.limits import WITHIN, Verdict, judge, parse
from rowsft.report.compare.number import Number, paired_up
from rowsft.report.compare.paired import paired_differences
from rowsft.report.settings import two_sided
from rowsft.store.files import jsonable
from rowsft.store.finding import finished_run

__all__ = ["Comparison", "compare"]

_KINDS = {"run": "a run", "benchmark": "a benchmark's file"}
_EXPECTED = "expected a run's id or folder, or a benchmark's file"


@dataclass(frozen=True)
class Comparison:
    """settings and environment hold what differs: {name: {"a": value, "b": value}}, a side that has none left out."""

    a: Side
    b: Side
    settings: dict[str, dict[str, object]]
    environment: dict[str, dict[str, object]]
    numbers: list[Number]
    verdicts: list[Verdict]

    @property
    def within(self) -> bool:
        """Whether every limit is kept; true without limits."""
        return all(verdict.outcome == WITHIN for verdict in self.verdicts)

    def as_dict(self) -> dict:
        """Return it JSON-able, for programs. Numbers are in the unit of their name; what was not measured is None."""
        return {
            **{
                key: {"kind": side.kind, "name": side.name, "title": side.title, "notes": side.notes}
                for key, side in (("a", self.a), ("b", self.b))
            },
            # A setting that is nan, which JSON has not, becomes null.
            "settings": jsonable(self.settings)[0],
            "environment": jsonable(self.environment)[0],
            "numbers": [_number_fields(number) for number in self.numbers],
            "limits": [vars(verdict) for verdict in self.verdicts],
            "within": self.within,
        }


def compare(a: str, b: str, store: str | Path = "runs", limits: list[str] | None = None) -> Comparison:
    """Compare two runs (ids, beginnings of ids, or folders) or two benchmark files; limits: see limits.py.

    Raises UserError for a run that is unknown or unfinished, a file that is no benchmark's, one of each, files without
    a method in common, and limits that cannot be read or name no number.
    """
    read = [parse(text) for text in limits or []]
    first, second = _side(a, store), _side(b, store)
    if first.kind != second.kind:
        raise UserError(
            f"A ({a}) is {_KINDS[first.kind]} and B ({b}) is {_KINDS[second.kind]}; give two runs or two files"
        )
    if first.record is None or second.record is None:
        _check_common(first, second)
        numbers = paired_up(first.numbers, second.numbers, {})
    else:
        evaluated = harness_numbers(first.record, second.record)
        paired = paired_differences(first.record, second.record) | evaluated[2]
        numbers = paired_up(first.numbers | evaluated[0], second.numbers | evaluated[1], paired)
    return Comparison(
        first,
        second,
        two_sided(first.settings, second.settings),
        two_sided(first.environment, second.environment),
        numbers,
        [verdict for limit in read for verdict in judge(limit, numbers)],
    )


def _side(name: str, store: str | Path) -> Side:
    path = Path(name)
    try:
        is_file = path.is_file() or path.suffix == ".json"
        without_record = path.is_dir() and not (path / "record.json").is_file()
    except OSError as error:
        raise UserError(f"{shortened(name)}: cannot be looked at ({error.strerror}); {_EXPECTED}") from error
    if is_file:
        return benchmark.side(path)
    if without_record:
        raise UserError(f"{name or repr(name)}: no record.json in this folder; {_EXPECTED}")
    return run.side(finished_run(name, store))


def _check_common(a: Side, b: Side) -> None:
    measured = [list(dict.fromkeys(name.rpartition(".")[0] for name in side.numbers if "." in name)) for side in (a, b)]
    if not set(measured[0]) & set(measured[1]):
        has = [", ".join(labels) or "none" for labels in measured]
        raise UserError(
            f"{a.name} and {b.name} have no measured method in common (A: {has[0]}; B: {has[1]}); "
            "give two files of one benchmark and one shape"
        )


def _number_fields(number: Number) -> dict:
    own = {name: getattr(number, name) for name in ("name", "a", "b", "difference", "change_percent")}
    return own | {f"paired_{name}": getattr(number.paired, name, None) for name in ("low", "high", "examples")}
