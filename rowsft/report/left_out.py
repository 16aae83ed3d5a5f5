"""What of a run's configuration does not determine its id, and the rule that leaves it out (docs/runs.md)."""

from dataclasses import dataclass
from typing import Literal

from rowsft.report.settings import flatten, under
from rowsft.store import Record
from rowsft.store.identity import CHECKPOINTS, PRESENTATION, PRESENTATION_ANYWHERE, PROCESSES
from rowsft.store.ignored import ignored_by_rule
from rowsft.store.targets import recorded

Kind = Literal["presentation", "saving", "machine", "ignored", "default", "content", "unread"]


@dataclass(frozen=True)
class LeftOut:
    """One key with the value that was configured. rule: of a key that the method ignores, the rule as it is declared.

    instead: of a path, what of it counts: the ending of a file, "folder" of a model's folder.
    """

    key: str
    value: object
    kind: Kind
    rule: str | None = None
    instead: object = None


def left_out(record: Record) -> list[LeftOut]:
    """Return every key of the configuration that stands in the identity otherwise than it was configured, sorted."""
    identity, rules = flatten(record.identity), ignored_by_rule(record.config)
    found = []
    for key, value in sorted(flatten(record.config).items()):
        rule = next((rule for name, rule in rules.items() if under(key, (name,))), None)
        if _presentation(key):
            found.append(LeftOut(key, value, "presentation"))
        elif key in CHECKPOINTS:
            found.append(LeftOut(key, value, "saving"))
        elif key == PROCESSES:
            found.append(LeftOut(key, value, "machine"))
        elif rule is not None:
            found.append(LeftOut(key, value, "ignored", rule))
        elif key not in identity:
            found.append(LeftOut(key, value, "default" if under(key, ("budget.default",)) else "unread"))
        # A class that has moved stands in the identity under its former name.
        elif identity[key] not in (value, recorded(value)):
            found.append(LeftOut(key, value, "content", instead=identity[key]))
    return found


def configured(record: Record) -> dict[str, object]:
    """Return the settings as they were configured, flat, without those that the run does not read."""
    identity = flatten(record.identity)
    return {key: value for key, value in flatten(record.config).items() if key in identity or _presentation(key)}


def _presentation(key: str) -> bool:
    parts = key.split(".")
    return parts[0] in PRESENTATION or not PRESENTATION_ANYWHERE.isdisjoint(parts)
