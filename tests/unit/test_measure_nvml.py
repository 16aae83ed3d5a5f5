"""Energy and process memory: arithmetic against a driver library that counts as told, absence without a GPU."""

import os
from types import SimpleNamespace

import pytest
import torch

from rowsft.measure import EnergyMeter, Gpu, gpu_of
from rowsft.record import plain

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU whose driver counts energy")


class Driver:
    """What pynvml offers, for a card that has used `millijoules`; None makes it a card that does not count them."""

    class NVMLError(Exception):
        pass

    def __init__(self, millijoules=None, processes=()):
        self.millijoules = millijoules
        self.processes = processes

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        if self.millijoules is None:
            raise self.NVMLError("Not Supported")
        return self.millijoules

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self.processes]


def test_energy_is_the_difference_of_the_counter_in_joules():
    driver = Driver(millijoules=7_000_000)
    energy = EnergyMeter("cpu", Gpu(driver, "handle"))
    for phase, used in (("train", 1500), ("evaluate", 250), ("train", 500)):
        with energy.phase(phase):
            driver.millijoules += used
    assert plain(energy.record) == {"kind": "nvml_whole_gpu", "train_joules": 2.0, "evaluate_joules": 0.25}


@pytest.mark.parametrize("gpu", [None, Gpu(Driver(), "handle")])
def test_where_energy_is_not_counted_nothing_is_entered(gpu):
    energy = EnergyMeter("cpu", gpu)
    with energy.phase("train"):
        pass
    assert plain(energy.record) is None


def test_the_process_is_found_among_others_or_unknown():
    mine, other = (os.getpid(), 3 << 30), (os.getpid() + 1, 5 << 30)
    assert Gpu(Driver(processes=[other, mine]), "handle").process_bytes() == 3 << 30
    assert Gpu(Driver(processes=[other]), "handle").process_bytes() is None
    assert Gpu(Driver(), "handle").process_bytes() is None


def test_a_cpu_has_no_gpu():
    assert gpu_of("cpu") is None


def test_the_names_that_are_asked_exist_in_the_library():
    import pynvml

    for name in ("nvmlInit", "nvmlDeviceGetHandleByUUID", "NVMLError", *vars(Driver)):
        if name.startswith(("nvml", "NVML")):
            assert hasattr(pynvml, name), name


@pytest.mark.gpu
@GPU
def test_a_gpu_that_works_takes_energy_and_memory():
    gpu = gpu_of("cuda")
    assert gpu is not None
    energy = EnergyMeter("cuda", gpu)
    matrix = torch.randn(4096, 4096, device="cuda")
    with energy.phase("train"):
        for _ in range(500):
            matrix @ matrix
    if gpu.energy_joules() is None:
        pytest.skip("this card does not count its energy")
    assert energy.record.train_joules > 0
    known = gpu.process_bytes()
    assert known is None or known >= torch.cuda.memory_reserved()
