"""Files of a run that cannot be read: they count as absent, with one warning each, and the report goes on without."""

import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar

from rowsft.errors import shortened
from rowsft.output import escape
from rowsft.store import Record

log = logging.getLogger(__name__)
Read = TypeVar("Read")

#: What reading a file of the wrong content raises: no such key, no number, no text, nested without end.
ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError)


def or_none(read: Callable[[], Read], record: Record, name: str | Path) -> Read | None:
    """Return what `read` makes of the run's file of that name or path, or None, with a warning, where it is damaged."""
    try:
        return read()
    except ERRORS as error:
        path = name if isinstance(name, Path) else record.file(name)
        _warn(escape.terminal(path), f"{type(error).__name__}: {escape.terminal(shortened(error))}")
        return None


@cache
def _warn(path: str, reason: str) -> None:
    log.warning("%s is damaged (%s); it counts as absent", path, reason)
