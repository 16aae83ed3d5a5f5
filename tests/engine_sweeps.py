"""Sweeps of tiny runs that the tests of Slurm and of Ray start, and wait for."""

import os
import subprocess
import sys
import time


def overrides(workshop, store, *more):
    left_out = ("store=", "trainer.memory_probe_steps", "budget.")
    rest = [text for text in workshop.overrides("bert") if not text.startswith(left_out)]
    return [*rest, f"store={store}", "trainer.memory_probe_steps=0", *more]


def started(workshop, arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "rowsft.cli", "sweep", *arguments],
        cwd=workshop.folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process, status):
    out, errors = process.communicate(timeout=400)
    assert process.returncode == status, (out, errors)
    return out.splitlines()


def until(holds, process=None, seconds=120):
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, "it did not come to that"
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.1)
    return found
