"""Fix the processor's instruction set, and put this folder on the import path: `from tiny import tiny_llama`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# oneDNN's 16-bit kernels allocate scratch memory, and how much depends on the processor. Up to AVX2 torch uses its own
# kernels, which allocate the same bytes on every x86 processor. oneDNN reads this once, at its first kernel; child
# processes inherit it. Not setdefault: bytes are compared exactly. test_instruction_sets.py tests the larger sets.
os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def small_disk(tmp_path):
    """A tmpfs of 64 KiB."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a file system needs root on Linux")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"this machine refuses mounts: {mounted.stderr.strip()}")
    yield disk
    # A test that fails may hold a file of it.
    subprocess.run(["umount", "--lazy", disk], check=True)
