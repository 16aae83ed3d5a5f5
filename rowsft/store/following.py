"""The log of a run's latest attempt, read to its end or as long as the run goes on."""

import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from rowsft.errors import UserError
from rowsft.store.confined import confined
from rowsft.store.files import explained
from rowsft.store.lock import is_held
from rowsft.store.record import Record
from rowsft.store.run_log import NAME

#: Seconds between two looks at whether something was added.
_LOOK_SECONDS = 0.3


def log_lines(record: Record, last: int, follow: bool) -> Iterator[str]:
    """Return the `last` lines of the log, then, with `follow`, what is added until no process works on the run.

    Raises UserError for a run without an attempt and for an attempt without a log.
    """
    if record.latest is None:
        raise UserError(f"run {record.id} is {record.state} and has no attempt yet; run it first")
    path = confined(record.folder, f"attempt-{record.latest.attempt}/{NAME}")
    if path is None or not path.is_file():
        raise UserError(
            f"run {record.id}: attempt {record.latest.attempt} has no log in {record.folder}: it was made before runs "
            "kept one, or it could not be written; expected a run that `rowsft run` or `rowsft sweep` made"
        )
    return _lines(path, record.folder, last, follow)


def _lines(path: Path, folder: Path, last: int, follow: bool) -> Iterator[str]:
    with explained(path), path.open("rb") as stream:
        kept = deque(stream, maxlen=last)
        rest = b""
        if follow and kept and not kept[-1].endswith(b"\n"):
            rest = kept.pop()
        yield from map(_text, kept)
        while follow:
            # Asked before the file is read: what a run adds before it ends is not missed.
            goes_on = is_held(folder)
            added = stream.read()
            *whole, rest = (rest + added).split(b"\n")
            yield from map(_text, whole)
            if not goes_on and not added:
                break
            if not added:
                time.sleep(_LOOK_SECONDS)
        if rest:
            yield _text(rest)


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\n")
