"""The store against real processes and real disks: races, kill -9, a full disk, a read-only one."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from rowsft.errors import UserError
from rowsft.store import Store

CONFIG = {"seed": 1, "method": {"name": "lora"}}

HOLD = """
import sys, time
from rowsft.store import Store
with Store(sys.argv[1]).open({"seed": 1, "method": {"name": "lora"}}) as run:
    run.begin()
    print(run.id, flush=True)
    time.sleep(60)
"""

RACE = """
import sys, time
from rowsft.errors import UserError
from rowsft.store import Store
sys.stdin.readline()
try:
    with Store(sys.argv[1]).open({"seed": 1, "method": {"name": "lora"}}) as run:
        attempt = run.begin()
        time.sleep(1.5)
        attempt.finish("done", metrics={})
    print("won")
except UserError as error:
    print("lost:", error)
"""

FORK = """
import os, sys, time
from rowsft.store import Store
run = Store(sys.argv[1]).open({"seed": 1, "method": {"name": "lora"}})
run.begin()
if os.fork() == 0:
    print(run.id, flush=True)
    time.sleep(30)
    os._exit(0)
time.sleep(60)
"""


def start(code, root):
    return subprocess.Popen(
        [sys.executable, "-c", code, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_two_processes_racing_for_a_run_make_one_attempt(tmp_path):
    racers = [start(RACE, tmp_path) for _ in range(2)]
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    said = sorted(racer.communicate(timeout=60)[0] for racer in racers)
    assert said[1] == "won\n" and said[0].startswith("lost: run ") and "is being worked on by process" in said[0]
    (record,) = Store(tmp_path).runs()
    assert [attempt.state for attempt in record.attempts] == ["done"]


def test_a_killed_run_reads_as_interrupted_and_the_next_attempt_starts(tmp_path):
    store = Store(tmp_path)
    holder = start(HOLD, tmp_path)
    run = holder.stdout.readline().strip()
    assert store.get(run).state == "running"
    with pytest.raises(UserError, match=f"run {run} is being worked on by process {holder.pid}; wait"):
        store.open(CONFIG)
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    before = (tmp_path / run / "record.json").read_bytes()
    record = store.get(run)
    assert record.state == record.latest.state == "interrupted"
    assert record.latest.error.message == "process gone"
    assert (tmp_path / run / "record.json").read_bytes() == before, "a reader rewrote the record"
    with store.open(CONFIG) as folder:
        folder.begin().finish("done", metrics={})
    assert [attempt.state for attempt in store.get(run).attempts] == ["interrupted", "done"]
    assert json.loads((tmp_path / run / "record.json").read_text())["attempts"][0]["state"] == "interrupted"


def test_why_a_process_went_away_can_be_written_down(tmp_path):
    store = Store(tmp_path)
    store.close_dead("0123456789ab", "nothing to close")
    holder = start(HOLD, tmp_path)
    run = holder.stdout.readline().strip()
    holder.kill()
    holder.communicate()
    store.close_dead(run, "the process was killed by signal 9")
    raw = json.loads((tmp_path / run / "record.json").read_text())
    assert raw["state"] == "interrupted" and raw["attempts"][0]["error"]["message"].endswith("signal 9")


def test_a_forked_worker_does_not_keep_a_dead_run_locked(tmp_path):
    parent = start(FORK, tmp_path)
    run = parent.stdout.readline().strip()
    parent.kill()
    parent.wait()
    assert Store(tmp_path).get(run).state == "interrupted"
    Store(tmp_path).open(CONFIG).close()


def test_a_file_size_limit_leaves_the_previous_record_whole(tmp_path):
    code = """
import resource, sys
from rowsft.errors import UserError
from rowsft.store import Store
run = Store(sys.argv[1]).open({"seed": 1, "method": {"name": "lora"}})
attempt = run.begin()
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    attempt.update(resolved={"ids": list(range(10000))})
except UserError as error:
    print(error)
"""
    said = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout
    assert "no space is left there" in said and str(tmp_path) in said and "store=FOLDER" in said
    (record,) = Store(tmp_path).runs()
    assert record.state == "interrupted" and record.latest.resolved == {}
    assert not [path for path in record.folder.iterdir() if path.suffix == ".tmp"]


def test_a_full_disk_is_named_and_the_previous_record_stays(small_disk):
    store = Store(small_disk / "runs")
    with pytest.raises(UserError, match=r"no space is left there.*store=FOLDER"), store.open(CONFIG) as run:
        attempt = run.begin()
        before = (run.path / "record.json").read_bytes()
        attempt.update(resolved={"ids": list(range(20000))})
    assert (run.path / "record.json").read_bytes() == before and not list(run.path.rglob("*.tmp"))
    assert store.get(run.id).state == "interrupted"


def test_a_disk_that_fills_up_while_an_adapter_is_saved_is_said_in_one_line(small_disk):
    """safetensors wraps the system's refusal in an error of its own."""
    store = Store(small_disk / "runs")

    def fill(folder):
        save_file({"delta": np.zeros(100_000)}, folder / "adapter.safetensors")

    with pytest.raises(UserError, match=r"no space is left there.*store=FOLDER"), store.open(CONFIG) as run:
        run.begin().write_folder("adapter", fill)
    assert store.get(run.id).state == "failed"
    assert not list((run.path / "attempt-1").iterdir())


def test_a_read_only_store_can_be_read_but_not_written(small_disk):
    store = Store(small_disk / "runs")
    with store.open(CONFIG) as run:
        run.begin().finish("done", metrics={})
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert store.get(run.id).state == "done" and len(store.runs()) == 1
    for config in (CONFIG, {**CONFIG, "seed": 2}):
        with pytest.raises(UserError, match="access is refused.*make it writable"):
            store.open(config)


def test_a_file_where_the_store_should_be_is_named(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(UserError, match=r"runs.*choose another folder"):
        Store(tmp_path / "runs").open(CONFIG)
