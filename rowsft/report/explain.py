"""What a run's id is made of, and which of it another run has otherwise: for `rowsft runs explain`."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from rowsft.output.quantities import NONE, text
from rowsft.report.groups import model_label
from rowsft.report.left_out import LeftOut, left_out
from rowsft.report.settings import flatten, named, two_sided
from rowsft.store import Record, Store
from rowsft.store.finding import find_run
from rowsft.store.identity import run_id

_WHY = {
    "presentation": "says where a run is shown, kept or grouped",
    "saving": "says how often a run is saved, to go on after a stop",
    "machine": "says over how many devices the same steps are spread",
    "ignored": "the method ignores it",
    "default": "not read, since another key of the budget is set",
    "content": "counts by content (see revisions), not by where it lies",
    "unread": "not read with these settings",
}


@dataclass(frozen=True)
class Explanation:
    """A run's identity, flat, beside what was left out of its configuration.

    todays_id: what the id would be by today's rules; another than the run's where an older version recorded it. other:
    the run beside it. as_near: of the nearest run, how many others differ in as few keys; None where it was named.
    differs: {key: {"a": this run's value, "b": the other's}}, a side that does not have the key left out.
    """

    record: Record
    todays_id: str
    identity: dict[str, object]
    left_out: list[LeftOut]
    other: Record | None
    as_near: int | None
    differs: dict[str, dict[str, object]]

    def as_dict(self) -> dict[str, object]:
        """Return it JSON-able, for programs."""
        return {
            "id": self.record.id,
            "todays_id": self.todays_id,
            "folder": str(self.record.folder),
            "identity": self.identity,
            "left_out": [{**vars(item), "reason": _WHY[item.kind]} for item in self.left_out],
            "other": self.other and self.other.id,
            "as_near": self.as_near,
            "differs": self.differs if self.other else None,
        }

    def lines(self) -> list[str]:
        """Return it as lines for a reader."""
        return [
            f"run {self.record.id}: {_title(self.record)}",
            *self._origin(),
            f"determined by {len(self.identity)} settings",
            *_by_group(self.identity),
            *_left_out_lines(self.left_out),
            *self._beside(),
        ]

    def _origin(self) -> list[str]:
        if self.todays_id == self.record.id:
            return []
        return [f"recorded by an older version, whose ids were made of more; today its id would be {self.todays_id}"]

    def _beside(self) -> list[str]:
        if self.other is None:
            return ["no other run is in its store"]
        nearest = "" if self.as_near is None else "nearest "
        others = f"; {self.as_near} more differ in as few" if self.as_near else ""
        beside = f"{nearest}run {self.other.id} ({_title(self.other)})"
        if not self.differs:
            return [f"{beside} differs in nothing that counts{others}"]
        width = max(map(len, self.differs))
        values = [
            f"  {key:<{width}}  {_side(sides, 'a')}  ->  {_side(sides, 'b')}" for key, sides in self.differs.items()
        ]
        return [f"{beside} differs in {len(values)} setting{'s' * (len(values) != 1)}{others}", *values]


def explain(store: str | Path, run: str, other: str | None = None) -> Explanation:
    """Explain a run (an id, its beginning, or a folder) beside another, or beside the nearest one of its store.

    The nearest differs in the fewest keys; of several it is the one with the first id. Raises UserError for a run that
    is unknown or damaged.
    """
    record = find_run(run, store)
    mine = flatten(record.identity)
    beside, as_near = (find_run(other, store), None) if other is not None else _nearest(record, mine)
    return Explanation(
        record,
        run_id(record.config),
        dict(sorted(mine.items())),
        left_out(record),
        beside,
        as_near,
        dict(sorted(two_sided(mine, flatten(beside.identity)).items())) if beside else {},
    )


def _nearest(record: Record, mine: dict[str, object]) -> tuple[Record | None, int | None]:
    others = [other for other in Store(record.folder.parent).runs() if other.id != record.id]
    if not others:
        return None, None
    distances = [len(two_sided(mine, flatten(other.identity))) for other in others]
    least = min(distances)
    return others[distances.index(least)], distances.count(least) - 1


def _title(record: Record) -> str:
    names = [named(record.config, "method"), model_label(record), named(record.config, "task")]
    return f"{' · '.join(names)}, seed {record.config.get('seed')}, {record.state}"


def _by_group(settings: dict[str, object]) -> Iterator[str]:
    """Return a line a group of keys and a line a key below it; keys without a group come first."""
    ordered = sorted(settings.items(), key=lambda pair: ("." in pair[0], pair[0]))
    for group, pairs in groupby(ordered, key=lambda pair: pair[0].partition(".")[0] if "." in pair[0] else ""):
        inside = [(key.removeprefix(f"{group}."), value) for key, value in pairs]
        if group:
            yield f"  {group}"
        width = max(len(key) for key, _ in inside)
        yield from (f"{'    ' if group else '  '}{key:<{width}}  {text(value)}" for key, value in inside)


def _left_out_lines(items: Iterable[LeftOut]) -> Iterator[str]:
    ordered = sorted(items, key=lambda item: (list(_WHY).index(item.kind), item.rule or "", item.key))
    for (kind, rule), group in groupby(ordered, key=lambda item: (item.kind, item.rule)):
        yield f"left out: {_WHY[kind]}{f' (`{rule}`)' if rule else ''}"
        for item in group:
            instead = f"  (as {text(item.instead)})" if kind == "content" else ""
            yield f"  {item.key}  {text(item.value)}{instead}"


def _side(sides: dict[str, object], name: str) -> str:
    return text(sides[name]) if name in sides else NONE
