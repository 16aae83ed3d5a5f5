"""The peak resident set sees memory that was touched and given back inside the block."""

import mmap
import os
import time
from pathlib import Path

import pytest

from rowsft.measure import ResidentPeak, resident

MEBIBYTE = 1 << 20


def touch_and_release(mebibytes: int, hold_seconds: float = 0.0) -> None:
    with mmap.mmap(-1, mebibytes * MEBIBYTE) as block:
        block.write(os.urandom(MEBIBYTE) * mebibytes)
        time.sleep(hold_seconds)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.skipif(not resident.CLEAR_REFS.exists(), reason="needs Linux's /proc/self/clear_refs")
def test_peak_covers_the_block_and_not_what_went_before():
    touch_and_release(400)
    before = resident_bytes()
    with ResidentPeak() as small:
        pass
    with ResidentPeak() as large:
        touch_and_release(100)
    assert small.method == large.method == "vm_hwm"
    assert abs(small.peak_bytes - before) < 20 * MEBIBYTE
    assert large.peak_bytes - before > 95 * MEBIBYTE


@pytest.mark.parametrize("refusal", ["missing", "no effect"])
def test_without_the_kernel_mark_the_peak_is_sampled_and_says_so(tmp_path, monkeypatch, refusal):
    touch_and_release(200)  # the mark now stands well above the resident set
    path = tmp_path / "clear_refs" if refusal == "no effect" else tmp_path / "missing" / "clear_refs"
    monkeypatch.setattr(resident, "CLEAR_REFS", path)
    before = resident_bytes()
    with ResidentPeak() as peak:
        touch_and_release(100, hold_seconds=0.5)
    assert peak.method == "sampled"
    assert peak.peak_bytes - before > 95 * MEBIBYTE
