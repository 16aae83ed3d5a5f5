"""One job sees one GPU, and jobs that run at once take different ones. It is arithmetic: no GPU is needed."""

import subprocess
import sys

import pytest
import torch
from transformers import TrainingArguments

from rowsft.compat.trainer import OneDeviceArguments
from rowsft.config.devices import CHOSEN, VISIBLE, devices_for, index_of, see_one
from rowsft.config.settings import TrainerSettings
from rowsft.errors import UserError
from rowsft.runner.trainer import run_device
from rowsft.sweep import launcher, under_way


@pytest.mark.parametrize(
    ("device", "before", "visible"),
    [
        ("auto", None, "0"),
        ("cuda", None, "0"),
        ("cuda:1", None, "1"),
        ("auto", "3,5", "3"),
        ("cuda", "3,5", "3"),
        ("cuda:1", "3,5", "5"),
        ("cuda:1", "GPU-aa, MIG-bb", "MIG-bb"),
        ("cpu", "3,5", "3,5"),
        ("auto", "", ""),
        ("auto", "-1,2", "-1,2"),
    ],
)
def test_a_process_sees_the_gpu_that_it_was_given(monkeypatch, device, before, visible):
    monkeypatch.delitem(sys.modules, "torch")
    environment = {} if before is None else {VISIBLE: before}
    see_one(device, environment)
    assert environment[VISIBLE] == visible
    # It is the first, and the only one, of those that are left; asking again changes nothing.
    assert index_of(device, environment) == 0
    again = dict(environment)
    see_one(device, again)
    assert again == environment


def test_once_torch_is_there_nothing_is_hidden_and_numbers_are_torchs_own():
    environment = {}
    see_one("cuda:2", environment)
    assert environment == {} and index_of("cuda:2", environment) == 2


@pytest.mark.parametrize("before", ["3,5", "3,5,-1,7", ""])
def test_a_number_beyond_the_visible_gpus_is_refused(monkeypatch, before):
    monkeypatch.delitem(sys.modules, "torch")
    with pytest.raises(UserError, match="trainer.device=cuda:2: [02] GPUs are visible"):
        see_one("cuda:2", {VISIBLE: before})


def test_jobs_at_once_take_the_visible_gpus_in_turn():
    taken = [devices_for(slot, "auto", {}, count=3)[VISIBLE] for slot in range(5)]
    assert taken == ["0", "1", "2", "0", "1"]
    listed = [devices_for(slot, "cuda", {VISIBLE: "GPU-b,7"}, count=3)[VISIBLE] for slot in range(3)]
    assert listed == ["GPU-b", "7", "GPU-b"]
    for device, environment, count in (("cpu", {}, 3), ("cuda:1", {}, 3), ("auto", {}, 0), ("auto", {VISIBLE: ""}, 3)):
        assert devices_for(1, device, environment, count) == {}


def test_the_job_of_a_sweep_keeps_the_gpu_that_its_sweep_gave_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    environment = {VISIBLE: "4,6", **devices_for(1, "auto", {VISIBLE: "4,6"})}
    see_one("auto", environment)
    assert environment == {VISIBLE: "6", CHOSEN: "auto"}


def test_a_run_hides_the_others_before_torch_is_there():
    code = (
        "import os, sys\n"
        "from rowsft.config.devices import see_one\n"
        "assert 'torch' not in sys.modules\n"
        "see_one('cuda:1')\n"
        "print(os.environ['CUDA_VISIBLE_DEVICES'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def settings(device: str) -> TrainerSettings:
    return TrainerSettings(device=device)


@pytest.fixture
def four_gpus(monkeypatch):
    """A machine with four GPUs, as far as their numbers go."""
    chosen = [0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: chosen[0])
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda device: chosen.__setitem__(0, getattr(device, "index", device))
    )
    return chosen


def test_the_trainer_gets_one_of_several_gpus(four_gpus, tmp_path):
    # What it would do by itself.
    plain = TrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=16, report_to=[])
    assert plain.n_gpu == 4 and plain.train_batch_size == 64
    for number in (0, 2):
        torch.cuda.set_device(run_device(settings(f"cuda:{number}")))
        ours = OneDeviceArguments(output_dir=str(tmp_path), per_device_train_batch_size=16, report_to=[])
        assert ours.n_gpu == 1 and ours.train_batch_size == 16
        assert ours.device == torch.device("cuda", number) and torch.cuda.current_device() == number


def test_the_device_of_a_run(four_gpus):
    assert run_device(settings("cpu")) == torch.device("cpu")
    assert run_device(settings("auto")) == run_device(settings("cuda")) == torch.device("cuda", 0)
    assert run_device(settings("cuda:3")) == torch.device("cuda", 3)
    with pytest.raises(UserError, match="trainer.device=cuda:4: 4 CUDA devices are visible, counted from 0"):
        run_device(settings("cuda:4"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there_is_refused(device):
    with pytest.raises(UserError, match=f"trainer.device={device}: no CUDA device is visible"):
        run_device(settings(device))


JOB = """#!/bin/sh
echo "start $CUDA_VISIBLE_DEVICES" >> {log}
sleep 0.$((1 + $$ % 3))
echo "end $CUDA_VISIBLE_DEVICES" >> {log}
exit 1
"""


@pytest.mark.parametrize(("visible", "at_once"), [("4,6", 2), ("4,6,7", 2), ("5", 1)])
def test_the_live_jobs_of_a_sweep_never_share_a_gpu(monkeypatch, tmp_path, visible, at_once):
    log, script = tmp_path / "log", tmp_path / "python"
    script.write_text(JOB.format(log=log))
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setenv(VISIBLE, visible)
    monkeypatch.delenv(CHOSEN, raising=False)
    monkeypatch.setattr(under_way, "sweep", under_way.Sweep())
    jobs = [[f"store={tmp_path / 'runs'}", f"seed={seed}"] for seed in range(6)]
    codes = launcher.run_jobs(jobs, at_once, threads=None)
    assert codes == [1] * 6
    live, used = set(), set()
    for line in log.read_text().splitlines():
        event, gpu = line.split()
        assert (gpu in live) is (event == "end"), line
        live.symmetric_difference_update({gpu})
        used.add(gpu)
    assert used == set(visible.split(",")[:at_once])
