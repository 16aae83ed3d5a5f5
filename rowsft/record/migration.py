"""Records of older versions as this one has them: the one place that knows what a key was called before."""

from typing import Any

#: Raised by one when a key is renamed or means something else; a step below then brings older records up to it.
SCHEMA_VERSION = 2


def migrated(raw: dict[str, Any]) -> dict[str, Any]:
    """Bring a record of an older `schema_version` up to SCHEMA_VERSION, in place, and return it. It may be damaged."""
    version = raw.get("schema_version")
    if type(version) is int and version < 2:
        attempts = raw.get("attempts")
        for attempt in attempts if isinstance(attempts, list) else ():
            if isinstance(attempt, dict) and "knobs" in attempt:
                attempt.setdefault("resolved", attempt.pop("knobs"))
        raw["schema_version"] = 2
    return raw
