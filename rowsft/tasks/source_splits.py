"""Which splits of a data source are our train, validation and test: by their names, or as task.data.splits says."""

from collections.abc import Mapping, Sequence
from typing import Any

from rowsft.errors import UserError, shortened
from rowsft.tasks.reading import Choice, canonical
from rowsft.tasks.splits import NAMES


def checked(splits: Any) -> dict[str, str | None] | None:
    """task.data.splits as texts. Raises UserError for an unknown split, what is no name, and a name given twice."""
    if splits is None:
        return None
    if not isinstance(splits, Mapping):
        raise UserError(
            f"task.data.splits={shortened(splits)}: expected a mapping such as {{test: validation}}, or null"
        )
    for ours, name in splits.items():
        if ours not in NAMES:
            raise UserError(f"task.data.splits.{shortened(ours)}: no such split; expected {', '.join(NAMES)}")
        if isinstance(name, bool) or not isinstance(name, str | int | None) or name == "":
            raise UserError(
                f"task.data.splits.{ours}={shortened(name)}: expected the name of a split of the data, or null"
            )
    if splits.get("train", "train") is None:
        raise UserError("task.data.splits.train=null: expected the name of the split to train on")
    return {str(ours): None if name is None else str(name) for ours, name in splits.items()}


def choice(splits: Mapping[str, str | None] | None, where: str, all_known: bool) -> Choice:
    """A function from the names of a source's splits to {ours: its name}; without a validation or test that it lacks.

    splits: as `checked` gives it; None takes the splits that are called train, validation and test. all_known: what
    has another name is refused then. `where` opens the messages.
    """

    def choose(names: Sequence[str]) -> dict[str, str]:
        if splits is None:
            others = [name for name in names if name not in NAMES] if all_known else []
            if others or "train" not in names:
                what = f"is {others[0]!r} a split to use?" if others else "no split called train;"
                raise UserError(
                    f"{where}: {what} It has {shortened(', '.join(sorted(names)), 200)}; rename it, or say which they "
                    "are, such as 'task.data.splits={train: train, validation: null, test: test}'"
                )
            return {name: name for name in NAMES if name in names}
        found = {}
        for ours in NAMES:
            name = splits.get(ours, ours)
            theirs = next((other for other in names if name in (other, canonical(other))), None) if name else None
            theirs = theirs or next((other for other in names if name and canonical(name) == canonical(other)), None)
            if theirs:
                found[ours] = theirs
            elif name and (ours == "train" or ours in splits):
                raise UserError(
                    f"task.data.splits.{ours}={shortened(name)}: no such split; {where} has {', '.join(sorted(names))}"
                )
        return _each_once(found)

    return choose


def _each_once(found: dict[str, str]) -> dict[str, str]:
    ours_of: dict[str, str] = {}
    for ours, theirs in found.items():
        if theirs in ours_of:
            raise UserError(
                f"task.data.splits: {ours_of[theirs]} and {ours} would both be the split {shortened(theirs)}; set one "
                "of them to null, which cuts it off train, or to another split"
            )
        ours_of[theirs] = ours
    return found
