"""Paths that a record names: only what lies in the run's own folder is ever opened."""

import logging
from functools import cache
from pathlib import Path

from rowsft.errors import shortened
from rowsft.output import escape

log = logging.getLogger(__name__)


def confined(folder: Path, relative: str) -> Path | None:
    """`folder / relative`, or None, with a warning, where that is no file or folder inside `folder`.

    Links are followed, those inside of a folder too: an adapter whose weights are a link to somewhere else is refused
    as a whole. What does not exist (yet) is returned as it is.
    """
    try:
        root = folder.resolve()
        path = folder / relative
        inside = _inside(root, path)
    except (OSError, ValueError, RuntimeError):
        # A name longer than any file's, a zero byte, links in a circle.
        inside = False
    if not inside:
        _warn(f"{escape.terminal(folder / 'record.json')} names the file {shortened(repr(relative))}")
        return None
    return path


def _inside(root: Path, path: Path) -> bool:
    real = path.resolve()
    if real == root or not real.is_relative_to(root):
        return False
    if path.is_dir():
        return all(_inside(root, entry) for entry in path.iterdir())
    return path.is_file() or not path.exists()


@cache
def _warn(what: str) -> None:
    log.warning("%s, which is no file in the folder of its run; it counts as absent", what)
