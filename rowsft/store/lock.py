"""One process works on a run at a time: an advisory lock that the kernel drops when its process dies.

Beside it stands a claim (claims.py), for machines that share the store over a network: `flock` may not reach them.
"""

import fcntl
import logging
import os
import time
import weakref
from pathlib import Path

from rowsft.errors import RunHeld
from rowsft.store import claims
from rowsft.store.claims import Claim
from rowsft.store.files import explained
from rowsft.store.machine import NO_FLOCK

#: A reader that asks whether a run is alive holds a shared lock for an instant: a writer asks again for this long.
_PATIENCE_SECONDS = 0.3

_locks: "weakref.WeakSet[RunLock]" = weakref.WeakSet()

log = logging.getLogger(__name__)


class RunLock:
    """An exclusive `flock` on `<folder>/lock` and a claim, taken at construction, given back by `release()`.

    Raises RunHeld, a UserError, when another process has them, naming it: at once where it runs on this machine; where
    it runs on another, as soon as it is seen to live (claims.BEAT_SECONDS).
    """

    def __init__(self, folder: Path):
        self.path = Path(folder) / "lock"
        self._claim: Claim | None = None
        with explained(self.path.parent):
            # Without a buffer: closing one would try again what a full disk has refused.
            self._stream = self.path.open("a+b", buffering=0)
        try:
            with explained(self.path.parent):
                self._claim = Claim(self.path.parent, self._take(), self._warn)
                self._stream.truncate(0)
                self._stream.write(f"{os.getpid()}\n".encode())
        except claims.Held as owner:
            self.release()
            raise self._held(str(owner)) from None
        except BaseException:
            self.release()
            raise
        _locks.add(self)

    def _take(self) -> bool:
        """Take the `flock`; False where the file system has none."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() > deadline:
                    break
                time.sleep(0.02)
            except OSError as error:
                if error.errno not in NO_FLOCK:
                    raise
                return False
        self._stream.seek(0)
        owner = self._stream.read(20).decode("ascii", "replace").strip()
        raise self._held(f"process {owner}" if owner else "another process")

    def check(self) -> None:
        """Raise RunHeld where another machine has taken the run over, this process having stood still for too long."""
        if self._claim is not None and not self._claim.holds():
            raise RunHeld(
                f"run {self.path.parent.name}: this process said nothing for {claims.LEASE_SECONDS:.0f} s or more, so "
                "another one has taken the run over; nothing more is recorded from here: leave it to the other one"
            )

    def release(self) -> None:
        """Give the lock back; a second call does nothing."""
        _locks.discard(self)
        claim, self._claim = self._claim, None
        if claim is not None:
            claim.release()
        self._stream.close()

    def _held(self, owner: str) -> RunHeld:
        return RunHeld(
            f"run {self.path.parent.name} is being worked on by {owner}; "
            "wait for it or choose another store with store=FOLDER"
        )

    def _warn(self, line: str) -> None:
        log.warning("run %s: %s", self.path.parent.name, line)


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
            flock_holds = True
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno not in NO_FLOCK:
                raise
            flock_holds = False
        finally:
            os.close(descriptor)
        return claims.is_claimed_elsewhere(path.parent, flock_holds)


def _close_in_child() -> None:
    """A forked data-loading worker must not keep its dead parent's run locked."""
    claims.forget_all()
    for lock in list(_locks):
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, lock._stream.fileno())
        os.close(nowhere)
        lock._claim = None


os.register_at_fork(after_in_child=_close_in_child)
