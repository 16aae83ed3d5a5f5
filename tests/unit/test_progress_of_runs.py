"""How far a running run is: written between steps, at most once a second, and read by `rowsft runs` and a sweep."""

import io
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from report_factory import config
from rich.console import Console
from tiny import tiny_bert

from rowsft.measure import StepClock
from rowsft.report.listing import Query, runs_list, runs_table
from rowsft.runner.progress import ProgressFile, StepProgress
from rowsft.runner.trainer import build_trainer
from rowsft.store import Store, progress
from rowsft.store.progress import Progress
from rowsft.sweep.board import DONE, FAILED, RUNNING, Board, is_watched
from rowsft.sweep.jobs import SweepJob

CPU = torch.device("cpu")
FAR = Progress("train", 12, 150, 0.53125, 3 * 2**20, "allocated", 62.4)


class Run:
    """A folder with an attempt, and a clock that moves when it is told to."""

    def __init__(self, folder):
        self.folder, self.now = folder, 100.0
        (folder / "attempt-1").mkdir()
        self.file = ProgressFile(folder / "attempt-1", CPU, clock=lambda: self.now)

    def step(self, number, after, loss=None):
        self.now += after
        self.file.step(number, 10, loss)
        return self.told()

    def told(self):
        found = progress.read(self.folder)
        return found and (found.phase, found.step, found.steps, found.loss, found.left_seconds)


def test_steps_are_told_once_a_second_and_phases_and_the_last_step_always(tmp_path):
    run = Run(tmp_path)
    assert run.told() is None
    run.file.enter("load")
    run.file.enter("train")
    assert run.told() == ("train", None, None, None, None)
    assert run.step(1, 0.9, 1.0) == ("train", None, None, None, None)
    assert run.step(2, 0.2, 0.9) == ("train", 2, 10, 0.9, pytest.approx(8 * 0.2))
    assert run.step(3, 0.4)[1] == run.step(4, 0.4)[1] == 2
    # The first step, with all that it has to set up, is no measure of the others.
    assert run.step(5, 1.0, 0.5) == ("train", 5, 10, 0.5, pytest.approx(2.0 / 4 * 5))
    assert run.step(10, 0.1, 0.25)[1:4] == (10, 10, 0.25)
    run.file.enter("evaluate")
    assert run.told() == ("evaluate", 10, 10, 0.25, None)


def test_a_resumed_run_tells_time_by_its_own_steps(tmp_path):
    run = Run(tmp_path)
    run.file.enter("train")
    run.step(6, 50.0)
    assert run.step(8, 4.0)[4] == pytest.approx(4.0)


def test_the_peak_never_falls_and_is_the_processs_own(tmp_path):
    run = Run(tmp_path)
    run.file.enter("load")
    found = progress.read(tmp_path)
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    resident_bytes = int(lines["VmRSS"].split()[0]) * 1024
    assert found.peak == "resident" and found.peak_bytes > 0.5 * resident_bytes
    run.file._now = replace(run.file._now, peak_bytes=10**15)
    run.file.enter("train")
    assert progress.read(tmp_path).peak_bytes == 10**15


def test_a_file_that_cannot_be_written_is_given_up(tmp_path):
    run = Run(tmp_path)
    (tmp_path / "attempt-1").rmdir()
    run.file.enter("train")
    (tmp_path / "attempt-1").mkdir()
    assert run.step(3, 5.0) is None


def test_a_loss_that_is_no_number_and_numbers_come_back_as_they_were(tmp_path):
    (tmp_path / "attempt-1").mkdir()
    progress.write(tmp_path / "attempt-1", FAR)
    assert progress.read(tmp_path) == FAR and len(list((tmp_path / "attempt-1").iterdir())) == 1
    progress.write(tmp_path / "attempt-1", replace(FAR, loss=float("nan")))
    assert progress.read(tmp_path) == replace(FAR, loss=None)
    (tmp_path / "attempt-10").mkdir()
    progress.write(tmp_path / "attempt-10", replace(FAR, step=13))
    assert progress.read(tmp_path).step == 13, "the latest attempt's"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '{"phase": 3}', '{"phase": "x", "step": "1"}', '{"step": 1}', '{"phase": "x", "y": 1}']
)
def test_a_file_that_is_not_as_it_should_be_tells_nothing(tmp_path, text):
    (tmp_path / "attempt-1").mkdir()
    (tmp_path / "attempt-1" / ".progress.tmp").write_text(text)
    assert progress.read(tmp_path) is None


def test_it_goes_when_the_attempt_ends_and_when_a_killed_run_is_opened_again(tmp_path):
    store = Store(tmp_path)
    with store.open(config()) as run:
        attempt = run.begin()
        progress.write(attempt.path, FAR)
        attempt.finish("done")
        assert progress.read(run.path) is None and not list(attempt.path.iterdir())
        progress.write(attempt.path, FAR)
    store.open(config()).close()
    assert progress.read(run.path) is None


def test_runs_show_phase_and_step_of_those_that_run(tmp_path):
    store = Store(tmp_path)
    with store.open(config(seed=2)) as run:
        attempt = run.begin()
        progress.write(attempt.path, FAR)
        (listed,) = runs_list(store)
        assert json.loads(json.dumps(vars(listed)))["progress"] == asdict(FAR)
        console = Console(width=160, record=True, file=io.StringIO())
        console.print(runs_table(store, width=160))
        assert "train 12/150, loss 0.5312, 1:02 left" in console.export_text()
        assert len(runs_list(store, Query(where=["phase=train step>=12 state=running"]))) == 1
        assert not runs_list(store, Query(where=["phase=load"]))
        attempt.finish("done")
    (listed,) = runs_list(store)
    assert listed.progress is None and not runs_list(store, Query(where=["phase!=null"]))


def test_steps_are_told_after_the_clock_has_stopped_and_are_what_was_trained(tmp_path):
    """The clock and the file are asked in the order of a real training."""
    events = []

    class Clock(StepClock):
        def start(self):
            events.append("start")
            super().start()

        def stop(self):
            super().stop()
            events.append("stop")

    class File(ProgressFile):
        def step(self, step, steps, loss):
            events.append((step, steps))
            super().step(step, steps, loss)

    from rowsft.config.compose import compose
    from rowsft.config.settings import trainer_settings

    settings = trainer_settings(compose(["trainer.steps=3", "trainer.batch_size=2", "trainer.device=cpu"]))
    encoded = [{"input_ids": torch.tensor([1, 2, 3]), "labels": i % 2} for i in range(6)]

    def collate(rows):
        return {key: torch.stack([torch.as_tensor(row[key]) for row in rows]) for key in rows[0]}

    model, clock = tiny_bert(num_labels=2), Clock(1, CPU)
    trainer = build_trainer(
        model,
        encoded,
        collate,
        settings,
        0,
        clock,
        lambda point: None,
        tmp_path / "scratch",
        normalises_by_tokens=False,
    )
    (tmp_path / "attempt-1").mkdir()
    file = File(tmp_path / "attempt-1", CPU)
    trainer.add_callback(StepProgress(file, trainer))
    file.enter("train")
    trainer.train()
    assert events == [event for step in (1, 2, 3) for event in ("start", "stop", (step, 3))]
    found = progress.read(tmp_path)
    assert (found.step, found.steps, found.phase) == (3, 3, "train") and found.loss == trainer.curve[-2]["loss"]


HOLD = """
import sys
from pathlib import Path
from rowsft.store.folder import RunFolder
with RunFolder(Path(sys.argv[1])) as run:
    print("held", flush=True)
    sys.stdin.readline()
"""


def board(store):
    """A sweep's board over four runs of the store, of which the first is held by a process."""
    from rowsft.config.run_spec import RunSpec

    jobs = []
    for seed in (1, 2, 3, 4):
        with store.open(config(seed=seed)) as run:
            pass
        spec = RunSpec(run.id, store.root, run.path, "demo", "label", {})
        jobs.append(SweepJob(seed, [], spec, f"seed={seed} " + "x" * 100 * (seed == 4), done=False))
    return Board(jobs, of=6), jobs


def drawn(board, width=100):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(board.table(width))
    return console.export_text().splitlines()


def test_a_board_tells_what_every_job_is_at(tmp_path):
    store = Store(tmp_path)
    table, jobs = board(store)
    lines = drawn(table)
    assert [line.split()[:3] for line in lines[1:4]] == [[f"[{n}/6]", f"seed={n}", "waiting"] for n in (1, 2, 3)]
    assert lines[-1].strip() == "4 waiting" and max(map(len, lines)) <= 100 and "…" in lines[4]
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(jobs[0].spec.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "held\n"
        for job in jobs[:2]:
            (job.spec.folder / "attempt-1").mkdir()
            progress.write(job.spec.folder / "attempt-1", FAR)
            table.tell(job, RUNNING)
        first, second = (line.split() for line in drawn(table)[1:3])
        assert first == ["[1/6]", "seed=1", "running", "train", "12/150", "0.5312", "3.0", "1:02"]
        assert second == ["[2/6]", "seed=2", "running"], "nobody holds it: a killed attempt has left that file"
    finally:
        process.kill()
        process.wait()
    table.tell(jobs[0], DONE)
    table.tell(jobs[1], FAILED)
    lines = drawn(table)
    assert lines[1].split() == ["[1/6]", "seed=1", "done", "12/150", "0.5312", "3.0"]
    assert lines[-1].strip() == "1 done, 1 failed, 2 waiting"


def test_a_board_of_many_jobs_fits_a_terminal(tmp_path):
    _, (job, *_) = board(Store(tmp_path))
    jobs = [replace(job, number=number) for number in range(1, 1001)]
    table = Board(jobs, of=1000)
    for one in jobs[:500]:
        table.tell(one, DONE)
    table.tell(jobs[500], RUNNING)
    lines = drawn(table)
    assert len(lines) <= 12 and lines[-1].strip() == "1 running, 500 done, 499 waiting"
    assert [line.split()[0] for line in lines[1:-1]] == [f"[{n}/1000]" for n in range(497, 506)]


def test_only_a_terminal_is_drawn_on(tmp_path, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    console = Console(file=io.StringIO())
    table, _ = board(Store(tmp_path))
    with table.drawn(console):
        console.print("a line")
    assert console.is_terminal and not is_watched(console)
    assert console.file.getvalue().strip() == "a line"
