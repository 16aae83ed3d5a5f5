"""Checkpoints of a run that is under way: folders of an attempt, whole or absent, the latest alone."""

import re
import shutil
from pathlib import Path

from rowsft.store.files import explained, flush

_NAME = re.compile(r"checkpoint-(\d{1,12})", re.ASCII)


def keep(written: Path, attempt: Path) -> Path:
    """Move a folder `checkpoint-STEP` that is written in full into the attempt's; the run's earlier ones go.

    Returns where it lies now. Its bytes are on disk before it has its name.
    """
    place = attempt / written.name
    with explained(attempt):
        for path in [*written.rglob("*"), written]:
            flush(path)
        if place.exists():
            # Of the same step, from before: this process has come from there.
            shutil.rmtree(place)
        written.rename(place)
        flush(attempt)
    for other in of_run(attempt.parent):
        if other != place:
            shutil.rmtree(other, ignore_errors=True)
    return place


def of_run(run: Path) -> list[Path]:
    """Return the checkpoints in a run's folder, that of the latest attempt and step first."""
    found = [path for path in run.glob("attempt-*/checkpoint-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: (_number(path.parent), _number(path)), reverse=True)


def remove_all(run: Path) -> None:
    """Remove the checkpoints of a run that needs none any more."""
    for path in of_run(run):
        shutil.rmtree(path, ignore_errors=True)


def _number(path: Path) -> int:
    number = path.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else 0
