"""The process's peak resident set during a block."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

CLEAR_REFS = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")
SAMPLE_SECONDS = 0.02
# The kernel writes the resident set's present size into the high-water mark; both readings come from one file.
RESET_SLACK_BYTES = 1 << 20


class ResidentPeak:
    """Context manager: `peak_bytes`, the largest resident set of this process during the block.

    `method` says how it was taken: "vm_hwm", the kernel's own high-water mark, reset at the start (exact), or "sampled"
    every 20 ms where the kernel does not let it be reset (a lower bound). The mark is one per process: blocks must not
    nest.
    """

    def __init__(self) -> None:
        self.peak_bytes: int | None = None
        self.method: str | None = None
        self._reached_bytes = 0
        self._paused = False

    def __enter__(self) -> "ResidentPeak":
        if _reset_high_water():
            self.method = "vm_hwm"
        else:
            self.method = "sampled"
            self._process = psutil.Process()
            self._largest_bytes = self._process.memory_info().rss
            self._done = threading.Event()
            self._thread = threading.Thread(target=self._sample, name="resident-peak", daemon=True)
            self._thread.start()
        _open.append(self)
        return self

    def __exit__(self, exc_type, exc_value, traceback) -> None:
        _open.remove(self)
        if self.method == "vm_hwm":
            self.peak_bytes = max(self._reached_bytes, _high_water()[0])
        else:
            self._done.set()
            self._thread.join()
            self.peak_bytes = max(self._largest_bytes, self._process.memory_info().rss)

    def _sample(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            if not self._paused:
                self._largest_bytes = max(self._largest_bytes, self._process.memory_info().rss)


# The blocks under way: one at most.
_open: list[ResidentPeak] = []


@contextmanager
def left_out() -> Iterator[None]:
    """Leave what the block takes out of the peak of the block around it, where there is one.

    Memory that the process does not give back afterwards counts.
    """
    for peak in _open:
        peak._paused = True
        if peak.method == "vm_hwm":
            peak._reached_bytes = max(peak._reached_bytes, _high_water()[0])
    yield
    for peak in _open:
        peak._paused = False
        if peak.method == "vm_hwm":
            _reset_high_water()


def high_water_bytes() -> int | None:
    """Return the largest resident set since the mark was last reset; None where the system does not report it."""
    try:
        return _high_water()[0]
    except (OSError, KeyError):
        return None


def _reset_high_water() -> bool:
    """Reset VmHWM; False where that is refused or, as under some sandboxes, accepted without effect."""
    try:
        before_bytes, _ = _high_water()
        CLEAR_REFS.write_text("5")
        after_bytes, resident_bytes = _high_water()
    except (OSError, KeyError):
        return False
    return after_bytes < before_bytes or after_bytes <= resident_bytes + RESET_SLACK_BYTES


def _high_water() -> tuple[int, int]:
    """VmHWM and VmRSS in bytes. Raises OSError or KeyError where the system does not report them."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines() if ":" in line)
    high_water, resident = (int(lines[key].split()[0]) * 1024 for key in ("VmHWM", "VmRSS"))
    return high_water, resident
