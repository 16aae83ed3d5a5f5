"""Allocation peaks against byte counts worked out by hand."""

from types import SimpleNamespace

import pytest
import torch
from tiny import causal_batch, tiny_llama
from torch import nn

from rowsft.errors import UserError
from rowsft.measure import AllocationPeak, MemoryLog, phase_memory, profile_peak, resident_tensor_bytes, watched
from rowsft.measure.memory import peak_of

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: reads its allocator's counters")
FLOAT = 4


def new_peak(fn) -> int:
    return profile_peak(fn, "cpu").new_peak_bytes


def test_replay_counts_only_frees_of_its_own_allocations():
    assert peak_of([]) == 0
    assert peak_of([(1, 10), (2, 5), (1, -10), (3, 20)]) == 25
    # Freed though never allocated here; the size of an earlier owner; an address handed out twice.
    assert peak_of([(9, -1000), (1, 10), (9, -1000), (2, 5)]) == 15
    assert peak_of([(1, 10), (1, -4000), (2, 12)]) == 12
    assert peak_of([(1, 10), (1, 30), (2, 1)]) == 31


def test_known_tensors_with_known_lifetimes():
    def lifetimes():
        first = torch.empty(1000)  # 4000 live
        second = torch.empty(500)  # 6000
        del first  # 2000
        third = torch.empty(700)  # 4800
        del second, third  # 0
        return torch.empty(300, dtype=torch.float64)  # 2400

    assert new_peak(lifetimes) == 1500 * FLOAT


def test_nothing_allocated_is_a_peak_of_zero():
    tensor = torch.zeros(100)
    assert new_peak(lambda: tensor.add_(tensor)) == 0
    assert new_peak(lambda: tensor.view(10, 10)[3]) == 0


def test_frees_of_old_tensors_do_not_lower_the_peak():
    held = {"old": torch.zeros(100_000)}

    def swap():
        del held["old"]
        held["new"] = torch.empty(2000)

    assert new_peak(swap) == 2000 * FLOAT


def test_tensors_of_an_earlier_window_are_old_in_the_next():
    held = {}
    assert new_peak(lambda: held.update(a=torch.empty(50_000))) == 50_000 * FLOAT

    def second():
        held.clear()
        held.update(b=torch.empty(10), c=torch.empty(20))

    assert new_peak(second) == 30 * FLOAT


def test_what_is_kept_at_the_end_counts_and_what_went_before_does_not():
    held = []
    with AllocationPeak("cpu") as peak:
        held.append(torch.empty(1234))
    assert (peak.new_peak_bytes, peak.kind) == (1234 * FLOAT, "cpu_profiler")
    assert (peak.peak_allocated_bytes, peak.peak_reserved_bytes) == (None, None)


def test_block_that_raises_leaves_no_number_and_a_usable_profiler():
    peak = AllocationPeak("cpu")
    with pytest.raises(ValueError, match="boom"), peak:
        torch.empty(10)
        raise ValueError("boom")
    assert peak.new_peak_bytes is None
    assert new_peak(lambda: torch.empty(10)) == 10 * FLOAT


def test_a_phase_that_died_of_memory_leaves_what_it_reached():
    memory = MemoryLog("cpu")
    with pytest.raises(RuntimeError, match="can't allocate memory"), watched(memory, "train", torch.device("cpu")):
        torch.empty(1 << 60, dtype=torch.uint8)
    assert memory["train"].resident_peak_bytes > 1 << 20
    assert memory["train"].peak_allocated_bytes is None, "not counted on a CPU: null, never 0"


@pytest.mark.gpu
@GPU
def test_a_gpu_phase_that_died_of_memory_leaves_its_peak():
    memory, device = MemoryLog("cuda"), torch.device("cuda")
    with pytest.raises(torch.OutOfMemoryError), watched(memory, "train", device):
        kept = torch.empty(64 << 20, dtype=torch.uint8, device=device)
        torch.empty(1 << 50, dtype=torch.uint8, device=device)
    assert memory["train"].peak_allocated_bytes >= kept.numel()


BATCH, WIDTH, HIDDEN, OUT = 64, 32, 128, 16
H, Y, W1, W2 = BATCH * HIDDEN, BATCH * OUT, WIDTH * HIDDEN, HIDDEN * OUT


def mlp() -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    """Two linear layers, their input and a gradient of their output, all there before anything is measured."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, OUT))
    return layers, torch.randn(BATCH, WIDTH), torch.randn(BATCH, OUT)


def test_two_linear_layers_forward_and_backward():
    """Layer 2 makes dH, dW2, db2 while H (saved) and Y (held by the call) live; then H goes and dW1, db1 come."""
    model, x, dy = mlp()
    in_layer_2 = H + Y + H + W2 + OUT
    in_layer_1 = Y + H + W2 + OUT + W1 + HIDDEN
    assert new_peak(lambda: model(x).backward(dy)) == max(in_layer_2, in_layer_1) * FLOAT


def test_large_first_layer_moves_the_peak_to_its_backward():
    wide = 40 * WIDTH
    model = nn.Sequential(nn.Linear(wide, HIDDEN), nn.Linear(HIDDEN, OUT))
    x, dy = torch.randn(BATCH, wide), torch.randn(BATCH, OUT)
    assert new_peak(lambda: model(x).backward(dy)) == (Y + H + W2 + OUT + wide * HIDDEN + HIDDEN) * FLOAT


def test_frozen_first_layer_needs_neither_its_gradient_nor_dh():
    model, x, dy = mlp()
    model[0].requires_grad_(False)
    assert new_peak(lambda: model(x).backward(dy)) == (H + Y + W2 + OUT) * FLOAT


def test_frozen_second_layer_does_not_keep_its_input():
    model, x, dy = mlp()
    model[1].requires_grad_(False)
    assert new_peak(lambda: model(x).backward(dy)) == max(H + Y, Y + H + W1 + HIDDEN) * FLOAT


def test_llama_step_repeats_to_the_byte():
    model = tiny_llama()
    batch = causal_batch()

    def step():
        model(**batch).loss.backward()
        model.zero_grad()

    step()
    first = new_peak(step)
    assert first == new_peak(step) > sum(p.numel() for p in model.parameters()) * FLOAT


def test_resident_bytes_by_group_count_every_storage_once():
    model = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 10, bias=False), nn.BatchNorm1d(10))
    model[0].requires_grad_(False)
    trainable = (200 + 20) * FLOAT
    base = (200 + 20) * FLOAT + 20 * FLOAT + 8  # running mean and variance; a 64-bit count of batches
    empty = {"gradient_bytes": 0, "optimizer_bytes": 0}
    expected = {"trainable_bytes": trainable, "base_bytes": base, **empty, "total_bytes": trainable + base}
    assert resident_tensor_bytes(model) == expected

    model[1].tied = model[1].weight  # the same storage under a second name
    model[0].register_buffer("view", model[0].weight.detach()[:3])
    assert resident_tensor_bytes(model) == expected

    model[0].kept = {"rows": [torch.zeros(6)]}  # a plain attribute is resident too
    model[0].patch = SimpleNamespace(rows=torch.zeros(7), owner=model[0])
    model[0].patch.itself = model[0].patch
    assert resident_tensor_bytes(model)["base_bytes"] == base + 13 * FLOAT


def test_resident_bytes_of_gradients_and_adam_state():
    model, x, dy = mlp()
    optimizer = torch.optim.AdamW(model.parameters())
    weights = sum(p.numel() for p in model.parameters()) * FLOAT
    model(x).backward(dy)
    assert resident_tensor_bytes(model, optimizer)["gradient_bytes"] == weights
    optimizer.step()
    optimizer.zero_grad()
    sizes = resident_tensor_bytes(model, optimizer)
    assert sizes["gradient_bytes"] == 0
    assert sizes["optimizer_bytes"] == 2 * weights + 4 * FLOAT  # two moments, one step counter for each tensor
    assert sizes["total_bytes"] == 3 * weights + 4 * FLOAT


def test_resident_bytes_of_a_meta_model_are_those_of_its_real_twin():
    with torch.device("meta"):
        meta = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    assert resident_tensor_bytes(meta) == resident_tensor_bytes(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5)))


def test_train_phase_is_resident_before_plus_new_peak():
    model, x, dy = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=False)
    weights = sum(p.numel() for p in model.parameters()) * FLOAT

    def step():
        model(x).backward(dy)
        optimizer.step()
        optimizer.zero_grad()

    step()
    memory = phase_memory(step, "cpu", model, optimizer)
    assert memory.resident_before_step_bytes == weights
    assert memory.step_peak_new_bytes == new_peak(step)
    assert memory.peak_allocated_bytes == weights + memory.step_peak_new_bytes
    assert memory.peak_reserved_bytes is None
    assert memory.resident_peak_bytes is None


def test_device_that_cannot_be_measured_is_named():
    with pytest.raises(UserError, match="^device mps: .*cpu or cuda"):
        AllocationPeak("mps")


@pytest.mark.gpu
@GPU
def test_gpu_peak_of_known_tensors():
    old = torch.zeros(1 << 20, device="cuda")

    def lifetimes():
        first = torch.empty(1 << 20, device="cuda")
        second = torch.empty(1 << 19, device="cuda")
        del first
        return second, torch.empty(1 << 18, device="cuda")

    peak = profile_peak(lifetimes, "cuda")
    assert peak.kind == "cuda_allocator"
    assert peak.new_peak_bytes == (3 << 19) * FLOAT
    assert peak.peak_allocated_bytes >= peak.new_peak_bytes + old.numel() * FLOAT
    assert peak.peak_reserved_bytes >= peak.peak_allocated_bytes
