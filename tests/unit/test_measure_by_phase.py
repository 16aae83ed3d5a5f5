"""Allocation peaks phase by phase, against byte counts worked out by hand."""

import pytest
import torch
from torch import nn

from rowsft.measure import peaks_by_phase
from rowsft.measure.memory import peaks_of

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: reads its allocator's counters")


def test_a_phase_begins_with_what_the_one_before_left():
    events = ["forward", (1, 10), (2, 5), (1, -10), "backward", (3, 2), "optimizer_step", (2, -5), (3, -2)]
    assert peaks_of(events) == {"forward": 15, "backward": 7, "optimizer_step": 7}
    # What comes before the first phase is its own; a phase may come again.
    assert peaks_of([(1, 10), (1, -10), "forward", (2, 3), "backward", (2, -3), "forward", (3, 20)]) == {
        "forward": 20,
        "backward": 3,
    }
    assert peaks_of([(1, 10)]) == {}


def work(model: nn.Module, device: str):
    def told(enter) -> None:
        enter("forward")
        first = torch.empty(1 << 20, dtype=torch.uint8, device=device)
        second = torch.empty(2 << 20, dtype=torch.uint8, device=device)
        del first
        enter("backward")
        third = torch.empty(4 << 20, dtype=torch.uint8, device=device)
        del second
        enter("optimizer_step")
        del third

    return told


def test_peaks_of_known_tensors():
    model = nn.Linear(256, 256, bias=False)
    held = model.weight.nbytes
    mib = {"forward": 3, "backward": 6, "optimizer_step": 4}
    assert peaks_by_phase(work(model, "cpu"), "cpu", model) == {name: held + (n << 20) for name, n in mib.items()}


@pytest.mark.gpu
@GPU
def test_peaks_of_known_tensors_on_a_gpu():
    model = nn.Linear(256, 256, bias=False, device="cuda")
    held = torch.cuda.memory_allocated()
    mib = {"forward": 3, "backward": 6, "optimizer_step": 4}
    found = peaks_by_phase(work(model, "cuda"), torch.device("cuda"), model)
    assert found == {name: held + (n << 20) for name, n in mib.items()}
