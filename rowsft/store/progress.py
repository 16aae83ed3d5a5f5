"""How far a running run is: a small file beside its log, put in place whole, and gone once the attempt is over.

What a killed run leaves of it goes when the run is opened next, as every `.*.tmp` does. It is no part of the record.
"""

import json
import os
import re
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from rowsft.store.files import jsonable, read_json

_NAME = ".progress.tmp"


@dataclass(frozen=True)
class Progress:
    """phase: the one entered last. step of steps: training steps taken, None before there are any.

    loss: the last one logged. peak_bytes: of the run so far, `peak` says of what: allocated (on a GPU) or resident.
    left_seconds: until the phase ends, if it goes on as it went.
    """

    phase: str
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    peak_bytes: int | None = None
    peak: str | None = None
    left_seconds: float | None = None


_NUMBERS = ("step", "steps", "loss", "peak_bytes", "left_seconds")


def write(attempt: Path, progress: Progress) -> None:
    """Put `progress` in place in the folder of an attempt. Raises OSError.

    It is not flushed to the disk, which takes as long as a step of training: after a power cut nobody asks for it.
    """
    temporary = attempt / f".progress.{os.getpid()}.tmp"
    temporary.write_text(json.dumps(jsonable(asdict(progress))[0]))
    temporary.replace(attempt / _NAME)


def remove(attempt: Path) -> None:
    """Take it away: the record says all there is to say."""
    with suppress(OSError):
        (attempt / _NAME).unlink()


def read(run: Path) -> Progress | None:
    """Return how far the latest attempt of a run's folder is; None where that is not told, or not as it should be."""
    try:
        found = [path for path in run.glob(f"attempt-*/{_NAME}") if re.fullmatch(r"attempt-\d{1,9}", path.parent.name)]
        latest = max(found, key=lambda path: int(path.parent.name.partition("-")[2]))
        progress = Progress(**read_json(latest, strict=True))
    except (OSError, ValueError, TypeError):
        return None
    numbers = [getattr(progress, name) for name in _NUMBERS]
    sound = isinstance(progress.phase, str) and isinstance(progress.peak, str | None)
    return progress if sound and all(isinstance(number, int | float | None) for number in numbers) else None
