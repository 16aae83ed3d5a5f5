"""`rowsft runs` on runs that the command line made: their logs, and what can be asked of them."""

import json
import os
import pty
import re
import sys

import pytest

from rowsft.store import Store

pytestmark = pytest.mark.whole


def cheap(workshop, store):
    rest = [text for text in workshop.overrides("bert") if not text.startswith(("store=", "budget.", "trainer.memory"))]
    return [*rest, f"store={store}", "trainer.memory_probe_steps=0", "trainer.steps=3"]


def test_a_run_and_the_jobs_of_a_sweep_keep_what_they_say(workshop, tmp_path):
    store = tmp_path / "runs"
    run = workshop.rowsft("run", *cheap(workshop, store), "method=head")
    assert run.returncode == 0, run.stderr
    (record,) = Store(store).runs()
    *said, _ = run.stdout.splitlines()
    log = (record.folder / "attempt-1" / "log.txt").read_text().splitlines()
    assert [line for line in log if line in said] == said and log[-1] == "done"
    assert any("training for 3 steps of 4" in line for line in log)
    assert set(record.result.files) == {"predictions", "curve", "adapter"}, "a log is no file of the record"

    # Two side by side print nothing; one of them fails.
    sweep = [
        "sweep",
        *cheap(workshop, store),
        "method=full",
        "trainer.learning_rate=0.001,1e30",
        "hydra.launcher.jobs=2",
    ]
    done = workshop.rowsft(*sweep)
    assert done.returncode == 1, done.stderr

    def runs(*words):
        return workshop.rowsft("runs", *words, "--store", str(store))

    (failed,) = json.loads(runs("--where", "method=full state=failed", "--json").stdout)
    (full,) = json.loads(runs("--where", "method=full learning_rate<1", "--sort", "-value", "--json").stdout)
    tail = runs("tail", failed["id"][:8], "-n", "3")
    assert tail.returncode == 0 and tail.stdout.splitlines()[-1] == "failed"
    assert "rowsft.runner.trainer.TrainingDiverged: loss is " in tail.stdout
    assert "Traceback (most recent call last):" in runs("tail", failed["id"], "-n", "99", "--no-follow").stdout
    explained = json.loads(runs("explain", full["id"], failed["id"], "--json").stdout)
    assert explained["differs"] == {"trainer.learning_rate": {"a": 0.001, "b": 1e30}}
    again = workshop.rowsft("run", *cheap(workshop, store), "method=head")
    assert "done already" in again.stderr and not (record.folder / "attempt-2").exists()

    assert runs("rm", "--where", "state=failed").returncode == 2, "nobody can be asked"
    assert runs("rm", "--where", "state=failed", "--yes").returncode == 0
    assert {run["id"] for run in json.loads(runs("--json").stdout)} == {record.id, full["id"]}


def in_terminal(command, until=None, typed=b""):
    """What a command prints in a terminal, and its exit status; `typed` is typed once `until` has been printed."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(command[0], command, {**os.environ, "HF_HUB_OFFLINE": "1", "TERM": "xterm", "COLUMNS": "110"})
    printed = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:
            # The other end is closed.
            break
        printed += part
        if until and until in printed:
            os.write(terminal, typed)
            until = None
    os.close(terminal)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", printed.decode(errors="replace")).replace("\r", ""), printed, status


def test_a_sweep_in_a_terminal_draws_how_far_its_jobs_are(workshop, tmp_path):
    store = tmp_path / "runs"
    # Texts that are repeated are warned of, by every job.
    (tmp_path / "repeated.jsonl").write_text((workshop.folder / "data" / "texts.jsonl").read_text() * 2)
    data = f"task.data.path={tmp_path / 'repeated.jsonl'}"
    sweep = [sys.executable, "-m", "rowsft.cli", "sweep", *cheap(workshop, store), data, "seed=1,2"]
    printed, _, status = in_terminal([*sweep, "method=head", "trainer.steps=2000"])
    assert status == 0, printed
    warned = {text for record in Store(store).runs() for text in record.result.task_about.warnings}
    assert warned and all(printed.count(f"warning: {text}") == 1 for text in warned), printed
    assert re.search(r"^\[1/2\] seed=1 +running +(load|train|evaluate|measure|save)\b", printed, re.MULTILINE), printed
    assert re.search(r"^\[1/2\] seed=1 +done +[\d,]+/2,000 +\d", printed, re.MULTILINE), printed
    assert "[1/2] seed=1: started" in printed and printed.rstrip().endswith("2 jobs: 2 done, 0 not")
    assert "training for" not in printed, "that is in the log"

    # Ctrl-C reaches sweep and job; the terminal gets its cursor back.
    printed, raw, status = in_terminal([*sweep, "method=full", "trainer.steps=100000"], b"train", b"\x03")
    assert status == 130 and "interrupted" in printed
    assert raw.rindex(b"\x1b[?25h") > raw.rindex(b"\x1b[?25l")
    (stopped,) = (record for record in Store(store).runs() if record.config["method"]["name"] == "full")
    assert stopped.state == "interrupted"
    assert "KeyboardInterrupt" in (stopped.folder / "attempt-1" / "log.txt").read_text()
    assert not list(stopped.folder.glob("attempt-1/.*"))
