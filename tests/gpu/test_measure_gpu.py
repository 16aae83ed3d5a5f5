"""Clocks, allocator meters and plans on a CUDA device, against what must be so."""

import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from shapes import SHAPES
from worker import Trial

from rowsft.measure import StepClock, phase_memory

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: its events and its allocator"),
]
CUDA = torch.device("cuda")


def trial(method: str, **settings) -> Trial:
    defaults = {"device": "cuda", "dtype": "bf16", "checkpointing": False}
    return Trial({**defaults, "shape": "llama", "method": method, **settings})


def test_events_and_the_wall_clock_tell_the_same_of_a_busy_device():
    matrix = torch.randn(4096, 4096, device=CUDA)
    clock = StepClock(warmup_steps=1, device=CUDA)
    for step in range(3):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        clock.start()
        for _ in range(200):
            matrix @ matrix
        clock.stop()
        torch.cuda.synchronize()
        wall = time.perf_counter() - begin
        if step:
            seconds = clock.summary()["step_seconds"].max
            assert seconds <= wall * 1.05
    assert clock.summary()["step_seconds"].timed_steps == 2


@pytest.mark.parametrize("method", ["floor", "rows", "lora", "full"])
def test_the_allocators_peak_is_what_the_worker_says(method):
    ready = trial(method)
    measured = ready.measured()
    again = phase_memory(ready.step, CUDA, ready.model, ready.optimizer)
    # Blocks are rounded up, by up to 2 MiB, to what is free at the time, and cuBLAS may have made a workspace more.
    assert measured["total_peak_bytes"] == pytest.approx(again.peak_allocated_bytes, rel=0.01)
    assert measured["total_peak_reserved_bytes"] >= measured["total_peak_bytes"] > measured["step_peak_bytes"] > 0
    weights = sum(p.numel() * p.element_size() for p in ready.model.parameters())
    assert measured["total_peak_bytes"] > weights
    assert measured["tokens_per_step"] == SHAPES["llama"].batch * SHAPES["llama"].length
    assert len(ready.seconds(3)) == 3


def test_the_methods_stand_in_the_order_of_their_memory():
    peaks = {method: trial(method).measured()["step_peak_bytes"] for method in ("floor", "rows", "lora", "dora")}
    # The floor's backpropagation goes down to the embeddings, that of rows ends in the first block.
    assert peaks["rows"] <= 1.03 * peaks["floor"]
    assert peaks["rows"] < peaks["lora"] < peaks["dora"]
