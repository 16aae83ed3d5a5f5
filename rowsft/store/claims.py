"""Who works on a run, told across machines that share a file system on which `flock` holds on one machine alone.

Some network file systems keep `flock` on the machine that asks for it (NFS mounted with local_lock, Lustre with
localflock, BeeGFS as it comes, most of FUSE) or refuse it. All of them create a file for one caller alone (O_EXCL). So
who takes a run creates `.claim-N` in its folder, N one higher than the highest there is: the highest is the owner's.
The owner sets the file's time every BEAT_SECONDS. Whoever finds it unchanged for LEASE_SECONDS, by time.monotonic,
which never jumps, takes the next number. A claim that is given back stays and says so: no number is used twice, and so
two who find one dead owner at the same moment cannot both follow it.
"""

import functools
import os
import re
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rowsft.store.machine import here, name

#: An owner says this often that it lives.
BEAT_SECONDS = 10.0
#: An owner elsewhere that says nothing for so long is dead. A client of NFS may see a file's time change that late.
LEASE_SECONDS = 60.0
_ASK_SECONDS = 1.0

_RELEASED = b"released\n"

_claims: "weakref.WeakSet[Claim]" = weakref.WeakSet()


class Held(Exception):
    """Another process has the claim. The text says which one."""


@dataclass(frozen=True)
class _Seen:
    """A claim as it was found. time_ns: what its owner changes to say that it lives."""

    number: int
    text: bytes
    time_ns: int

    @property
    def released(self) -> bool:
        return self.text.startswith(_RELEASED)

    @property
    def owner(self) -> str:
        words = self.text.decode("ascii", "replace").split()
        return f"process {words[0]} on {words[2]}" if len(words) == 3 else "a process on another machine"

    def is_free(self, place: str, flock_holds: bool) -> bool:
        """Whether it was given back, or is of this kernel and mount and `flock` says that its owner is dead."""
        return self.released or (flock_holds and self.text.split()[1:2] == [place.encode()])


class Claim:
    """The highest claim in `folder`, taken at construction and given back by `release()`.

    flock_holds: this process has the folder's `flock`, so that a claim from this kernel and mount is a dead one's.
    Waits where an owner elsewhere has not given its claim back: until it is seen to live, which raises Held, or for
    LEASE_SECONDS; `warn` is called with a line before that.
    """

    def __init__(self, folder: Path, flock_holds: bool, warn: Callable[[str], object]):
        self.folder, place = Path(folder), here(folder)
        while True:
            seen = _highest(self.folder)
            if seen is not None and not seen.is_free(place, flock_holds) and not _outlives(self.folder, seen, warn):
                continue
            self.number = seen.number + 1 if seen else 1
            if _create(self.path, f"{os.getpid()} {place} {name()}\n".encode()):
                if self.holds():
                    break
                # Another one has taken a higher number, from a later view of the folder.
                _unlink(self.path)
        for number in _numbers(self.folder):
            if number != self.number:
                _unlink(_path(self.folder, number))
        _claims.add(self)
        _start_beating()

    @property
    def path(self) -> Path:
        """The claim's file."""
        return _path(self.folder, self.number)

    def holds(self) -> bool:
        """Whether the claim is the highest still: who was stopped for longer than the lease may have lost it."""
        try:
            # Opening asks the server, where looking may be answered from what this machine remembers.
            os.close(os.open(self.path, os.O_RDONLY))
        except FileNotFoundError:
            return False
        return max(_numbers(self.folder)) == self.number

    def beat(self) -> None:
        """Say that the owner lives."""
        with suppress(OSError):
            os.utime(self.path)

    def release(self) -> None:
        """Give the claim back; does nothing where it is lost."""
        _claims.discard(self)
        with suppress(OSError):
            descriptor = os.open(self.path, os.O_WRONLY)
            try:
                os.write(descriptor, _RELEASED)
                os.ftruncate(descriptor, len(_RELEASED))
            finally:
                os.close(descriptor)


def is_claimed_elsewhere(folder: Path, flock_holds: bool) -> bool:
    """Whether a process on another machine or mount seems to work in `folder`: what can be told at once.

    It goes by the clocks of this machine and of the file's: where they are minutes apart a reader is misled, a Claim
    never. flock_holds: it was asked for, so that claims from this kernel and mount say nothing more. Writes nothing.
    """
    seen = _highest(Path(folder))
    if seen is None or seen.is_free(here(folder), flock_holds):
        return False
    return abs(time.time() - seen.time_ns / 1e9) < 2 * LEASE_SECONDS


def remove_all(folder: Path) -> None:
    """Remove the claims in a folder that is about to go."""
    for number in _numbers(Path(folder)):
        _unlink(_path(Path(folder), number))


def forget_all() -> None:
    """Let go of the claims of this process without a word: a forked child does not own its parent's."""
    _claims.clear()
    _start_beating.cache_clear()


def _path(folder: Path, number: int) -> Path:
    return folder / f".claim-{number}"


def _numbers(folder: Path) -> list[int]:
    names = (re.fullmatch(r"\.claim-(\d{1,18})", path.name, re.ASCII) for path in folder.glob(".claim-*"))
    return [int(found[1]) for found in names if found]


def _create(path: Path, text: bytes) -> bool:
    """Whether this call has made the file; False where it exists."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    try:
        os.write(descriptor, text)
    except BaseException:
        _unlink(path)
        raise
    finally:
        os.close(descriptor)
    return True


def _unlink(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _highest(folder: Path) -> _Seen | None:
    while numbers := _numbers(folder):
        with suppress(FileNotFoundError):
            return _look(folder, max(numbers))
        # Removed by one who has taken a higher number; the list may be one that this machine remembers.
        time.sleep(0.01)
    return None


def _look(folder: Path, number: int) -> _Seen:
    descriptor = os.open(_path(folder, number), os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        return _Seen(number, os.read(descriptor, 400), os.fstat(descriptor).st_mtime_ns)
    finally:
        os.close(descriptor)


def _outlives(folder: Path, first: _Seen, warn: Callable[[str], object]) -> bool:
    """Whether this process has outlived the claim's owner; False where the claim was given back or followed meanwhile.

    Raises Held when the owner says that it lives.
    """
    warn(f"{first.owner} has not given it back; waiting up to {LEASE_SECONDS:.0f} s to see whether that one lives")
    deadline = time.monotonic() + LEASE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(_ASK_SECONDS)
        seen = _highest(folder)
        if seen is None or seen.number != first.number or seen.released:
            return False
        if seen.time_ns != first.time_ns:
            raise Held(first.owner)
    return True


@functools.cache
def _start_beating() -> None:
    """One thread for all claims of a process; it ends with the process."""
    threading.Thread(target=_beat, name="rowsft claims", daemon=True).start()


def _beat() -> None:
    while True:
        time.sleep(BEAT_SECONDS)
        for claim in list(_claims):
            claim.beat()
