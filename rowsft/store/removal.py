"""Runs taken out of a store: each renamed aside first, so that it is there whole or not at all, and then deleted."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from rowsft.errors import RunHeld, UserError
from rowsft.store.files import explained
from rowsft.store.lock import RunLock, is_held
from rowsft.store.record import Record

#: Beside the runs, so that to rename into it is one step; it has no record.json, so that nothing takes it for a run.
ASIDE = ".removed.tmp"


def size_bytes(record: Record) -> int:
    """Return the bytes of the files in a run's folder; what links lead to is not part of it."""
    total = 0
    for folder, _, names in os.walk(record.folder):
        for name in names:
            with suppress(OSError):
                total += (Path(folder) / name).lstat().st_size
    return total


def check_free(records: list[Record]) -> None:
    """Raise RunHeld, naming them, where processes work on some of the runs."""
    held = [record.id for record in records if is_held(record.folder)]
    if held:
        raise RunHeld(f"run {', '.join(held)}: a process works on it; nothing was removed: stop it or leave it out")


def remove(record: Record) -> bool:
    """Take a run out of its store. Return whether all of it is deleted: what is not lies in .removed.tmp beside it.

    Raises RunHeld where a process works on it and UserError where it cannot be renamed; it is then as it was.
    """
    folder, aside = record.folder, record.folder.parent / ASIDE
    if folder.is_symlink():
        raise UserError(f"{folder} is a link; remove the link, or the run in the folder that it leads to")
    lock = RunLock(folder)
    try:
        with explained(folder.parent):
            away = _renamed(folder, aside)
        shutil.rmtree(away, ignore_errors=True)
    finally:
        lock.release()
    with suppress(OSError):
        aside.rmdir()
    return not away.exists()


def _renamed(folder: Path, aside: Path) -> Path:
    away = aside / f"{folder.name}.{os.getpid()}"
    for attempt in range(3):
        aside.mkdir(exist_ok=True)
        try:
            return folder.rename(away)
        except FileNotFoundError:
            # Another process has cleared up in between.
            if attempt == 2 or not folder.exists():
                raise
    raise AssertionError("either of them has ended the loop")


def clear(root: Path) -> None:
    """Delete what a removal that was killed has left, as far as it may be deleted."""
    shutil.rmtree(root / ASIDE, ignore_errors=True)
