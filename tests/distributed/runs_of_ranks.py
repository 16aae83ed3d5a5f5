"""Runs in one process or several, stopped after a step where that is asked for, and what they leave."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from rowsft.config.compose import compose
from rowsft.config.run_spec import run_spec
from rowsft.config.settings import trainer_settings
from rowsft.runner.context import Outcome
from rowsft.runner.ranks import Ranks
from rowsft.runner.run import run
from rowsft.runner.trainer import OrderedTrainer
from rowsft.store import Record, Store

# Seconds until a start of processes counts as hung: two cores under load take a minute for what takes them ten seconds.
PATIENCE_SECONDS = 1200


class Stopped(Exception):
    """A run that ends early, in all of its processes at the same step."""


@contextmanager
def stopping(step: int | None) -> Iterator[None]:
    log = OrderedTrainer.log

    def stopped(self, logs, start_time=None):
        log(self, logs, start_time)
        if step is not None and "loss" in logs and self.state.global_step >= step:
            raise Stopped(f"at step {step}")

    OrderedTrainer.log = stopped
    try:
        yield
    finally:
        OrderedTrainer.log = log


def go(overrides: list[str], group: Ranks, stop: int | None = None) -> Outcome | None:
    """Run what the overrides describe in this process of a group; None in a process that was stopped."""
    config = compose(overrides)
    settings = trainer_settings(config)
    try:
        with stopping(stop):
            return run(run_spec(config), settings, False, lambda text: None, None, group.under(settings.strategy))
    except Stopped:
        return None


def in_processes(count: int, cases: dict, folder: Path) -> str:
    """Go through `cases` (see worker.py) in that many processes; returns what they print."""
    (folder / "cases.json").write_text(json.dumps(cases))
    here = Path(__file__).parent
    paths = [str(here), str(here.parent), str(here.parent.parent), os.environ.get("PYTHONPATH", "")]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "localhost", "--nproc-per-node"]
    process = subprocess.Popen(
        [sys.executable, *launcher, str(count), str(here / "worker.py"), str(folder / "cases.json")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        said, _ = process.communicate(timeout=PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        # It ends its processes, which being killed would leave behind.
        process.terminate()
        said, _ = process.communicate()
    assert process.returncode == 0, said[-6000:]
    return said


@contextmanager
def group_of_one(monkeypatch) -> Iterator[Ranks]:
    """A group with this process alone in it, as torchrun would have started it."""
    place = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    with monkeypatch.context() as patch:
        for name, value in {**place, "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}.items():
            patch.setenv(name, value)
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        try:
            yield Ranks(strategy="ddp", backend="gloo")
        finally:
            dist.destroy_process_group()


def record_of(store: Path, overrides: list[str]) -> Record:
    return Store(store).get(run_spec(compose(overrides)).run_id)


def curve(record: Record) -> list[dict[str, float]]:
    with record.file("curve").open() as lines:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(lines)]


def weights(record: Record) -> dict[str, torch.Tensor]:
    files = sorted(record.file("adapter").rglob("*.safetensors"))
    return {name: tensor for path in files for name, tensor in load_file(path).items()}


def predictions(record: Record) -> list[dict]:
    return [json.loads(line) for line in record.file("predictions").read_text().splitlines()]


def assert_same_training(record: Record, expected: Record) -> None:
    """Losses, gradient norms, trained weights and predictions agree within the rounding of float32 sums."""
    close = {"rtol": 1e-4, "atol": 3e-5}
    here, there = curve(record), curve(expected)
    assert [point["step"] for point in here] == [point["step"] for point in there]
    assert here[0].keys() == there[0].keys() >= {"loss", "grad_norm", "learning_rate", "examples"}
    for name in there[0]:
        values = ([point[name] for point in points] for points in (here, there))
        torch.testing.assert_close(*map(torch.tensor, values), **close)
    trained, wanted = weights(record), weights(expected)
    assert trained.keys() == wanted.keys() and trained
    for name, tensor in wanted.items():
        torch.testing.assert_close(trained[name], tensor, **close)
    rows, others = predictions(record), predictions(expected)
    assert len(rows) == len(others) and [row["id"] for row in rows] == [row["id"] for row in others]
    for row, other in zip(rows, others, strict=True):
        assert row.keys() == other.keys()
        for key, value in other.items():
            numbers = isinstance(value, float | list)
            assert row[key] == (pytest.approx(value, abs=1e-4) if numbers else value), key
    same = ("steps", "train_tokens", "train_examples", "parameters", "resolved")
    assert [getattr(record.result, name) for name in same] == [getattr(expected.result, name) for name in same]
