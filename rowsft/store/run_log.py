"""What a run prints, kept in its attempt's folder as it is printed, without secrets.

    with RunLog() as log:                  # what is printed from here on is kept
        ...
        attempt.keep_log(log)              # in attempt-N/log.txt from here on, what was printed before first

It is no part of the record: it grows while the run does, and no result hangs on it. What native code writes past
Python's streams is not in it.
"""

import io
import re
import sys
from pathlib import Path
from threading import RLock
from typing import Any, TextIO

from rowsft.errors import one_line
from rowsft.output import escape, redact

NAME = "log.txt"

_STYLES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_LONGEST_LINE = 2**16


class RunLog:
    """Copies stdout and stderr, a line at a time, for the length of a `with` block.

    What goes wrong with its file ends the log with one warning, never the run.
    """

    def __init__(self) -> None:
        self._early: list[str] | None = []
        self._file: io.FileIO | None = None
        self._lock = RLock()
        self._copies: list[_Copied] = []
        self._streams: tuple[TextIO, TextIO] | None = None

    def __enter__(self) -> "RunLog":
        self._streams = sys.stdout, sys.stderr
        self._copies = [_Copied(stream, self) for stream in self._streams]
        # Everything that these do not define themselves they take from the streams in their place.
        sys.stdout, sys.stderr = self._copies
        return self

    def __exit__(self, *_: object) -> None:
        assert self._streams is not None
        sys.stdout, sys.stderr = self._streams
        self.close()

    def begin(self, path: Path) -> None:
        """Write to that file from here on, first of all what was printed already."""
        with self._lock:
            early, self._early = self._early or [], None
            try:
                self._file = path.open("ab", buffering=0)
            except OSError as error:
                self._give_up(error)
            for line in early:
                self.line(line)

    def line(self, text: str) -> None:
        """Add a line, or several with line ends between them."""
        with self._lock:
            if self._early is not None:
                self._early.append(text)
            elif self._file is not None:
                cleaned = "".join(f"{_clean(line)}\n" for line in text.split("\n")).encode()
                try:
                    # Without a buffer: a process that is killed has its log, and a full disk is told of at once.
                    while cleaned:
                        cleaned = cleaned[self._file.write(cleaned) :]
                except OSError as error:
                    self._give_up(error)

    def close(self, last: str | None = None) -> None:
        """Add what was printed without a line end and a last text, and close the file; later lines are not kept."""
        with self._lock:
            for copy in self._copies:
                copy.end()
            if last:
                self.line(last)
            self._early = None
            file, self._file = self._file, None
            if file is not None:
                file.close()

    def _give_up(self, error: OSError) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()
        stream = self._streams[1] if self._streams else sys.stderr
        reason = escape.terminal(one_line(f"{type(error).__name__}: {error}"))
        print(f"rowsft: warning: the run goes on without its log: {reason}", file=stream, flush=True)


def last_line(attempt: Path, text: str) -> None:
    """Add how an attempt ended to its log, where the process that kept it could not."""
    log = RunLog()
    if (attempt / NAME).exists():
        log.begin(attempt / NAME)
        log.close(text)


class _Copied:
    """A stream whose whole lines a log gets too."""

    def __init__(self, stream: TextIO, log: RunLog):
        self._stream = stream
        self._log = log
        self._rest = ""

    def write(self, text: str) -> int:
        *lines, rest = (self._rest + text).split("\n")
        for line in lines:
            self._log.line(_overwritten(line.removesuffix("\r")))
        self._rest = _overwritten(rest) if rest[-1:] != "\r" else f"{_overwritten(rest[:-1])}\r"
        if len(self._rest) > _LONGEST_LINE:
            self.end()
        return self._stream.write(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def end(self) -> None:
        """Hand on what has no line end yet."""
        rest, self._rest = self._rest.removesuffix("\r"), ""
        if rest.strip():
            self._log.line(rest)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _overwritten(line: str) -> str:
    """What is left to see of a line that was written several times over, as a bar is."""
    return line.rpartition("\r")[2]


def _clean(line: str) -> str:
    return escape.terminal(redact.text(_STYLES.sub("", line)))
