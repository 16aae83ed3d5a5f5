"""Examples of one split that another split holds too, by their ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rowsft.tasks.inspection.measuring import Measure
from rowsft.tasks.splits import NAMES

#: How two inputs are equal: the model reads the same tokens, or the texts are the same but for what normalise drops.
KINDS = ("exact", "normalised")


@dataclass(frozen=True)
class Overlap:
    """How many examples of split `later` split `earlier` holds too, with all pairs of ids (that of later first).

    What is equal exactly counts as equal after normalisation as well.
    """

    later: str
    earlier: str
    kind: str
    count: int
    pairs: list[tuple[str, str]]


def overlaps(measures: Mapping[str, Measure], ids: Mapping[str, Sequence[str]]) -> list[Overlap]:
    """Return validation in train, test in train and test in validation, each of both kinds.

    Inputs that are no text are compared exactly alone.
    """
    found = []
    names = [name for name in NAMES if name in measures]
    for later in names:
        for earlier in names[: names.index(later)]:
            for kind in KINDS:
                keys = [getattr(measures[name], kind) for name in (later, earlier)]
                if all(keys):
                    pairs = _pairs(keys[0], keys[1], ids[later], ids[earlier])
                    found.append(Overlap(later, earlier, kind, len(pairs), pairs))
    return found


def _pairs(later: list[bytes], earlier: list[bytes], later_ids: Sequence[str], earlier_ids: Sequence[str]):
    """Each example of `later` with the first of `earlier` that has its key."""
    first: dict[bytes, str] = {}
    for key, id_ in zip(earlier, earlier_ids, strict=True):
        first.setdefault(key, id_)
    return [(id_, first[key]) for key, id_ in zip(later, later_ids, strict=True) if key in first]


def repeated(measure: Measure) -> int:
    """Return how many examples of a split have the input of an earlier one, exactly."""
    return len(measure.exact) - len(set(measure.exact))
