"""`rowsft run` with a strategy: it starts the processes and leaves none behind, and records which of them died."""

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from runs_of_ranks import PATIENCE_SECONDS
from torch.distributed.launcher.api import LaunchConfig

from rowsft.cli.main import main
from rowsft.runner import launching
from rowsft.runner.resuming import last_checkpoint
from rowsft.store import Store

pytestmark = pytest.mark.whole

TWO = ["trainer=ddp", "trainer.processes=2"]
QUICK = ["method=lora", "trainer.steps=2", "trainer.memory_probe_steps=0"]
ENDLESS = ["method=lora", "trainer.steps=1000000", "trainer.memory_probe_steps=0"]


def arguments(workshop, store, *more) -> list[str]:
    trainer = [text for text in more if text.startswith("trainer=")]
    return ["run", *trainer, *workshop.overrides("llama"), f"store={store}", *(m for m in more if m not in trainer)]


def waited(until, what: str):
    """What `until` gives, once it gives something."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := until()):
        assert time.monotonic() < deadline, f"still waiting for {what}"
        time.sleep(0.2)
    return found


class Running:
    """A run of two processes that has taken its first step. `ranks`: its processes by rank."""

    def __init__(self, workshop, store, *more):
        command = [sys.executable, "-m", "rowsft.cli", *arguments(workshop, store, *ENDLESS, *TWO, *more)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.store = store
        waited(self._has_stepped, "the first step")
        children = psutil.Process(self.process.pid).children()
        self.ranks = {int(child.environ()["RANK"]): child for child in children if "RANK" in child.environ()}
        assert set(self.ranks) == {0, 1}

    def _has_stepped(self) -> bool:
        assert self.process.poll() is None, self.process.communicate()[0]
        return any(
            '"step": 0' not in path.read_text()
            for path in self.store.glob("*/attempt-1/.progress.tmp")
            if '"step": null' not in path.read_text()
        )

    def ended(self) -> str:
        """What it has said, once it and all of its processes are gone."""
        said, _ = self.process.communicate(timeout=PATIENCE_SECONDS)
        _, left = psutil.wait_procs(self.ranks.values(), timeout=PATIENCE_SECONDS)
        for process in left:
            process.kill()
        assert not left
        return said

    @property
    def record(self):
        (record,) = Store(self.store).runs()
        return record


def test_a_run_starts_its_processes_and_is_found_done(workshop, tmp_path, capfd):
    with pytest.raises(SystemExit) as first:
        main(arguments(workshop, tmp_path, *QUICK, *TWO))
    said = capfd.readouterr()
    assert first.value.code == 0, said.err
    (record,) = Store(tmp_path).runs()
    assert said.out.splitlines()[-1] == f"done: run {record.id} in {record.folder}"
    assert said.out.count("training for 2 steps of 4") == 1
    assert record.result.ranks.processes == 2 and record.result.pid == os.getpid()
    # As many processes as there are devices: no other run.
    with pytest.raises(SystemExit) as again:
        main(arguments(workshop, tmp_path, *QUICK, "trainer=ddp", "trainer.processes=4"))
    assert again.value.code == 0 and "done already" in capfd.readouterr().err


@pytest.mark.parametrize("rank", [1])
def test_a_process_that_is_killed_ends_the_run_and_the_record_names_it(workshop, tmp_path, rank):
    running = Running(workshop, tmp_path)
    running.ranks[rank].kill()
    said = running.ended()
    assert running.process.returncode == 1
    why = f"rank {rank} (process {running.ranks[rank].pid}) killed by signal 9 (SIGKILL): out of memory?"
    assert f"rowsft: {why}" in said.splitlines()
    assert (running.record.state, running.record.latest.error.message) == ("interrupted", why)
    assert (running.record.folder / "attempt-1" / "log.txt").read_text().splitlines()[-2:] == [why, "interrupted"]


def test_the_processes_end_with_the_one_that_started_them(workshop, tmp_path):
    running = Running(workshop, tmp_path)
    running.process.kill()
    running.ended()
    assert running.record.state == "interrupted"
    assert "the process that started this run is gone" in (running.record.folder / "attempt-1/log.txt").read_text()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR2"])
def test_a_stop_reaches_every_process(workshop, tmp_path, name):
    """As Slurm tells a job to stop: all of its processes at once, and the first again and again, by its worker."""
    running = Running(workshop, tmp_path)
    number = getattr(signal, name)
    for process in (running.process, *running.ranks.values()):
        process.send_signal(number)
    for _ in range(4):
        time.sleep(0.02)
        running.process.send_signal(signal.SIGTERM)
    said = running.ended()
    assert running.process.returncode == 130, said
    error = running.record.latest.error
    assert (running.record.state, error.message, error.phase) == ("interrupted", f"stopped by {name}", "train")
    assert said.count("interrupted") == 1
    assert last_checkpoint(running.record) is not None


SLOW_TO_END = """
import os, pathlib, signal, sys, time
mine = pathlib.Path(sys.argv[1]) / os.environ["RANK"]
def end(*_):
    time.sleep(2)
    mine.write_text("ended")
    sys.exit()
signal.signal(signal.SIGTERM, end)
mine.touch()
while True:
    time.sleep(0.1)
"""


@pytest.mark.skipif("shutdown_timeout" not in vars(LaunchConfig)["__dataclass_fields__"], reason="always 30 s there")
@pytest.mark.parametrize("seconds", [0, 60])
def test_a_stop_waits_as_long_as_a_checkpoint_may_take(tmp_path, monkeypatch, seconds):
    monkeypatch.setattr(launching, "_END_SECONDS", 0.5)
    places = [tmp_path / rank for rank in "01"]

    def stop():
        waited(lambda: all(place.exists() for place in places), "both processes")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)}
    try:
        ending = launching.launch(["-c", SLOW_TO_END, str(tmp_path)], 2, 1, seconds, str)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert ending.error.message == "stopped by SIGTERM"
    assert [place.read_text() for place in places] == ["ended" if seconds else ""] * 2


@pytest.mark.parametrize(
    ("overrides", "environment", "message"),
    [
        (["trainer=ddp", "trainer.processes=3"], {}, "trainer.batch_size=4: the examples of a forward pass over all 3"),
        (["trainer=fsdp"], {}, "trainer.device=cpu sees none; set trainer.processes=2"),
        (["trainer.processes=2"], {}, "trainer.processes=2: expected null where trainer.strategy is null"),
        (["trainer=ddp", "trainer.device=cuda:1"], {}, "trainer.device=cuda:1: expected auto, cpu or cuda under"),
        (["trainer=fsdp", "trainer.autocast=fp16"], {}, "trainer.autocast=fp16: expected null or bf16"),
        (
            ["trainer=fsdp", "trainer.processes=2", "trainer.forgetting.path=package:python_reference"],
            {},
            "trainer.forgetting.path=package:python_reference: is not measured under trainer.strategy=fsdp",
        ),
        ([], {"WORLD_SIZE": "2"}, "WORLD_SIZE=2: this is one of several processes, and trainer.strategy=null"),
        (["trainer=ddp"], {"WORLD_SIZE": "3"}, "trainer.batch_size=4: the examples of a forward pass over all 3"),
        (["trainer=ddp"], {"WORLD_SIZE": "two"}, "WORLD_SIZE=two: expected whole numbers"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_starts(
    workshop, tmp_path, capsys, monkeypatch, overrides, environment, message
):
    if environment:
        place = {"RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
        for name, value in {**place, **environment}.items():
            monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        main(arguments(workshop, tmp_path / "runs", *overrides))
    assert ended.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
