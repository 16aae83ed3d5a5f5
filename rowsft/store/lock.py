"""One process works on a run at a time: an advisory lock that the kernel drops when its process dies."""

import fcntl
import os
import time
import weakref
from pathlib import Path

from rowsft.errors import RunHeld
from rowsft.store.files import explained

#: A reader that asks whether a run is alive holds a shared lock for an instant: a writer asks again for this long.
_PATIENCE_SECONDS = 0.3

_locks: "weakref.WeakSet[RunLock]" = weakref.WeakSet()


class RunLock:
    """An exclusive `flock` on `<folder>/lock`, taken at construction, given back by `release()`.

    Raises RunHeld, a UserError, at once when another process holds it, naming that process.
    """

    def __init__(self, folder: Path):
        self.path = Path(folder) / "lock"
        with explained(self.path.parent):
            # Without a buffer: closing one would try again what a full disk has refused.
            self._stream = self.path.open("a+b", buffering=0)
        try:
            self._take()
            with explained(self.path.parent):
                self._stream.truncate(0)
                self._stream.write(f"{os.getpid()}\n".encode())
        except BaseException:
            self._stream.close()
            raise
        _locks.add(self)

    def _take(self) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                return fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    break
                time.sleep(0.02)
        self._stream.seek(0)
        owner = self._stream.read(20).decode("ascii", "replace").strip()
        who = f"process {owner}" if owner else "another process"
        raise RunHeld(
            f"run {self.path.parent.name} is being worked on by {who}; "
            "wait for it or choose another store with store=FOLDER"
        )

    def release(self) -> None:
        """Give the lock back; a second call does nothing."""
        _locks.discard(self)
        self._stream.close()


def is_held(folder: Path) -> bool:
    """Whether some process holds the lock of this run folder. Writes nothing, so a read-only store can be asked.

    Raises UserError for a lock that may not be read: whether it is held cannot be told.
    """
    path = Path(folder) / "lock"
    with explained(path):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
    return False


def _close_in_child() -> None:
    """A forked data-loading worker must not keep its dead parent's run locked."""
    for lock in list(_locks):
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, lock._stream.fileno())
        os.close(nowhere)


os.register_at_fork(after_in_child=_close_in_child)
