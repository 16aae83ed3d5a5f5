"""A scheduler's signal lets a training run finish its step and keep a checkpoint, to go on from to the same end."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from kill import table

from rowsft.store import Store
from rowsft.store.checkpoints import of_run

pytestmark = pytest.mark.whole

STEPS = 400


def command(workshop, store, *more):
    settings = ["method=row_sft", f"trainer.steps={STEPS}", "trainer.memory_probe_steps=0", "trainer.logging_steps=2"]
    # No checkpoint but that of the stop.
    settings += ["trainer.checkpoint_minutes=null", f"store={store}"]
    return ["run", *workshop.overrides("bert"), *settings, *more]


def stopped(workshop, arguments, number):
    """Stop a run inside its training by a signal; returns its exit status."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rowsft.cli", *arguments],
        cwd=workshop.folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert any("training for" in line for line in process.stdout), "the run did not come as far as training"
    time.sleep(0.5)
    process.send_signal(number)
    process.stdout.read()
    return process.wait(timeout=60)


@pytest.fixture(scope="module")
def undisturbed(workshop, tmp_path_factory):
    store = tmp_path_factory.mktemp("undisturbed")
    done = workshop.rowsft(*command(workshop, store))
    assert done.returncode == 0, done.stderr
    return table(store)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_stopped_run_goes_on_from_the_step_it_was_stopped_at(workshop, tmp_path, undisturbed, number):
    assert stopped(workshop, command(workshop, tmp_path), number) == 130
    (record,) = Store(tmp_path).runs()
    assert record.state == "interrupted" and record.latest.error.message == f"stopped by {number.name}"
    (folder,) = of_run(record.folder)
    step = json.loads((folder / "run_state.json").read_text())["step"]
    assert 0 < step < STEPS and step % 2 == 0
    curve = (record.folder / "attempt-1" / "curve.csv").read_text().splitlines()
    assert len(curve) == 1 + step // 2, "nothing was trained after the checkpoint"

    assert workshop.rowsft(*command(workshop, tmp_path)).returncode == 0
    (record,) = Store(tmp_path).runs()
    assert (record.result.resumed.step, record.result.resumed.times) == (step, 1)
    assert table(tmp_path) == undisturbed


@pytest.mark.parametrize(
    ("setting", "number"),
    [
        ("trainer.checkpoint_stop_seconds=0", signal.SIGTERM),
        ("trainer.checkpoint_stop_seconds=20", signal.SIGINT),
        # No step comes onto the curve, and so none can be gone on from, before the time is up.
        ("trainer.logging_steps=1000000 trainer.checkpoint_stop_seconds=0.2", signal.SIGTERM),
    ],
)
def test_a_stop_that_does_not_wait_leaves_no_checkpoint(workshop, tmp_path, setting, number):
    more = ["trainer.steps=200000", *setting.split()]
    assert stopped(workshop, command(workshop, tmp_path, *more), number) == 130
    (record,) = Store(tmp_path).runs()
    assert record.state == "interrupted" and record.latest.error.message == f"stopped by {number.name}"
    assert of_run(record.folder) == []
