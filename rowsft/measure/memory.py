"""Exact allocation peaks: replayed from the profiler on a CPU, read from the allocator on a GPU."""

import os
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile, record_function

from rowsft.compat.torch import REGISTERED, is_cpu_allocation, profiled_nodes, storage_id
from rowsft.layers.quantised import stored
from rowsft.measure import left_out
from rowsft.measure.device import device_kind
from rowsft.record import PhaseMemory

KINDS = {"cpu": "cpu_profiler", "cuda": "cuda_allocator"}


# Marks of `peaks_by_phase` in the profiler's events.
_MARK = "rowsft.phase:"


class AllocationPeak:
    """Context manager: the largest number of bytes that the block holds at once above what is resident at its start.

    On a CPU torch's profiler records every tensor allocation and free of the thread that enters (and of autograd on its
    behalf), in requested bytes, and the exit replays them; a free of memory from before the block changes nothing, so
    the peak is that of new allocations. It slows the block, and libraries' private scratch buffers are not seen. On a
    GPU the caching allocator's own peak counters are reset and read, which costs nothing; there the peak is net of
    memory from before the block that was freed in it.

    After the block: `new_peak_bytes`; and `peak_allocated_bytes`, `peak_reserved_bytes` of the whole process, both None
    on a CPU. Blocks do not nest. If the block raised, a GPU's are those reached by then and a CPU's stay None.
    """

    def __init__(self, device: str | torch.device):
        self.kind = KINDS[device_kind(device)]
        self.new_peak_bytes: int | None = None
        # Of the phases that `peaks_by_phase` marks, on a CPU.
        self.by_phase: dict[str, int] = {}
        self.peak_allocated_bytes: int | None = None
        self.peak_reserved_bytes: int | None = None
        self._device = torch.device(device)

    def __enter__(self) -> "AllocationPeak":
        if self.kind == "cuda_allocator":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            left_out.begin()
            self._before_bytes = torch.cuda.memory_allocated(self._device)
        else:
            # Kineto prints a line to stderr at every start and stop unless this is set before its first use.
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")
            self._profile: profile | None = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self._profile.__enter__()
        return self

    def __exit__(self, exc_type, exc_value, traceback) -> None:
        if self.kind == "cpu_profiler":
            assert self._profile is not None, "blocks do not nest"
            self._profile.__exit__(exc_type, exc_value, traceback)
            if exc_type is None:
                events = _cpu_memory_events(self._profile)
                self.by_phase = peaks_of(events)
                self.new_peak_bytes = peak_of(event for event in events if not isinstance(event, str))
            self._profile = None
        else:
            # Not after an error, which it may raise again; the counters are the host's own.
            if exc_type is None:
                torch.cuda.synchronize(self._device)
            reached = left_out.gpu_peaks(self._device)
            self.peak_allocated_bytes = reached["peak_allocated_bytes"]
            self.peak_reserved_bytes = reached["peak_reserved_bytes"]
            self.new_peak_bytes = self.peak_allocated_bytes - self._before_bytes


def profile_peak(fn: Callable[[], Any], device: str | torch.device) -> AllocationPeak:
    """Call `fn` under an AllocationPeak and return that."""
    with AllocationPeak(device) as peak:
        fn()
    return peak


def phase_memory(
    fn: Callable[[], Any],
    device: str | torch.device,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    held_bytes: int = 0,
) -> PhaseMemory:
    """Call `fn` and return its memory as a phase of the record.

    On a CPU peak_allocated_bytes is what model and optimizer hold before `fn`, and held_bytes beside them, plus the
    peak of its new allocations; on a GPU it is the allocator's own. For a training step call it warm (optimizer state
    exists) and without gradients, as a step begins. The process's resident set is not among it, for the profiler
    inflates that: it comes from a ResidentPeak around the phase without one.
    """
    if device_kind(device) == "cuda":
        resident_bytes = torch.cuda.memory_allocated(device)
    else:
        resident_bytes = resident_tensor_bytes(model, optimizer)["total_bytes"] + held_bytes
    peak = profile_peak(fn, device)
    new_bytes, allocated_bytes = peak.new_peak_bytes, peak.peak_allocated_bytes
    assert new_bytes is not None, "the block has not raised"
    return PhaseMemory.of(
        peak_allocated_bytes=resident_bytes + new_bytes if allocated_bytes is None else allocated_bytes,
        peak_reserved_bytes=peak.peak_reserved_bytes,
        resident_before_step_bytes=resident_bytes,
        step_peak_new_bytes=new_bytes,
    )


def resident_tensor_bytes(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, int]:
    """Bytes of the distinct storages that a model and its optimizer hold, each counted once.

    trainable_bytes: parameters that require a gradient. base_bytes: the other parameters, buffers, and tensors that
    modules keep as plain attributes or in objects that are. gradient_bytes: the parameters' .grad. optimizer_bytes: its
    state. total_bytes: their sum. A storage that falls in two groups counts in the first of trainable, base, gradient,
    optimizer.
    """
    seen: set[int] = set()
    sizes = {name: _new_storage_bytes(tensors, seen) for name, tensors in resident_groups(model, optimizer).items()}
    names = {
        "trainable_weights": "trainable_bytes",
        "base_weights": "base_bytes",
        "gradients": "gradient_bytes",
        "optimizer_state": "optimizer_bytes",
    }
    return {**{names[part]: size for part, size in sizes.items()}, "total_bytes": sum(sizes.values())}


def resident_groups(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, list[torch.Tensor]]:
    """What a model and its optimizer keep between steps: part of the memory -> tensors.

    base_weights has whatever is frozen: parameters, buffers, and what modules keep in plain attributes.
    """
    parameters = list(model.parameters())
    return {
        "trainable_weights": [parameter for parameter in parameters if parameter.requires_grad],
        "base_weights": [each for parameter in parameters if not parameter.requires_grad for each in stored(parameter)]
        + list(model.buffers())
        + list(_plain_tensors(model)),
        "gradients": [parameter.grad for parameter in parameters if parameter.grad is not None],
        "optimizer_state": list(_tensors_in([*optimizer.state.values()])) if optimizer is not None else [],
    }


def peaks_by_phase(
    work: Callable[[Callable[[str], None]], object],
    device: str | torch.device,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
) -> dict[str, int]:
    """Call `work` with a function that it tells every phase that begins: phase -> allocation peak in bytes.

    What a phase begins with counts as its first moment. On a CPU the peaks are those of the profiler's timeline above
    what model and optimizer hold, as in `phase_memory`; on a GPU the allocator's counters are read and reset at every
    phase's end. What happens before the first phase belongs to it.
    """
    if device_kind(device) == "cuda":
        return _cuda_peaks_by_phase(work, torch.device(device))
    resident_bytes = resident_tensor_bytes(model, optimizer)["total_bytes"]

    def mark(phase: str) -> None:
        with record_function(f"{_MARK}{phase}"):
            pass

    with AllocationPeak(device) as peak:
        work(mark)
    return {phase: resident_bytes + new for phase, new in peak.by_phase.items()}


def _cuda_peaks_by_phase(work: Callable[[Callable[[str], None]], object], device: torch.device) -> dict[str, int]:
    # Allocations are the host's own doing: their order, and so the peaks, need no waiting for the GPU.
    peaks: dict[str, int] = {}
    now: str | None = None

    def enter(phase: str) -> None:
        nonlocal now
        if now is not None:
            peaks[now] = max(peaks.get(now, 0), torch.cuda.max_memory_allocated(device))
            torch.cuda.reset_peak_memory_stats(device)
        now = phase

    torch.cuda.reset_peak_memory_stats(device)
    work(enter)
    if now is not None:
        enter(now)
    return peaks


def peak_of(events: Iterable[tuple[int, int]]) -> int:
    """Largest sum of live bytes over (address, bytes) events in time order; bytes are negative for a free.

    The allocator remembers sizes from earlier profiled windows, and an address may have changed hands since: only a
    free of an address that was allocated in these events counts, with the size it was allocated with.
    """
    return max(_totals(events), default=0)


def peaks_of(events: Iterable[tuple[int, int] | str]) -> dict[str, int]:
    """`peak_of` for every phase of the events, which begins with its name among them; empty without names."""
    peaks: dict[str, int] = {}
    phase, before = None, 0
    every = list(events)
    totals = _totals(event for event in every if not isinstance(event, str))
    largest_before = 0
    for event in every:
        if isinstance(event, str):
            phase = event
            # What came before the first phase is its own.
            first = before if peaks else largest_before
            peaks[phase] = max(peaks.get(phase, 0), first)
            continue
        before = next(totals)
        if phase is None:
            largest_before = max(largest_before, before)
        else:
            peaks[phase] = max(peaks[phase], before)
    return peaks


def _totals(events: Iterable[tuple[int, int]]) -> Iterator[int]:
    """Live bytes after every event."""
    live: dict[int, int] = {}
    total = 0
    for address, size in events:
        if size < 0:
            total -= live.pop(address, 0)
        else:
            # An address handed out again was freed where the profiler could not see it.
            total += size - live.get(address, 0)
            live[address] = size
        yield max(0, total)


def _cpu_memory_events(profiled: profile) -> list[tuple[int, int] | str]:
    """(address, bytes) of every CPU "[memory]" event, and the names of phases where they begin, in time order.

    Read from the event tree because the flat "[memory]" events carry sizes without addresses.
    """
    nodes = profiled_nodes(profiled)
    events: list[tuple[int, tuple[int, int] | str]] = []
    while nodes:
        node = nodes.pop()
        nodes.extend(node.children)
        if is_cpu_allocation(node):
            events.append((node.start_time_ns, (node.extra_fields.ptr, node.extra_fields.alloc_size)))
        elif node.name.startswith(_MARK):
            events.append((node.start_time_ns, node.name.removeprefix(_MARK)))
    events.sort(key=lambda event: event[0])
    return [event for _, event in events]


def _plain_tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    return _tensors_in(
        [value for module in model.modules() for name, value in vars(module).items() if name not in REGISTERED]
    )


def _tensors_in(values: list[Any]) -> Iterator[torch.Tensor]:
    """Tensors reachable through containers and the attributes of plain objects, but not through modules or functions.

    Plain objects count because a tuner may keep the original weights of what it changed in one.
    """
    pending, visited = list(values), set()
    while pending:
        value = pending.pop()
        if id(value) in visited:
            continue
        visited.add(id(value))
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict):
            pending.extend(value.values())
        elif isinstance(value, list | tuple):
            pending.extend(value)
        elif hasattr(value, "__dict__") and not callable(value) and not isinstance(value, ModuleType):
            pending.extend(vars(value).values())


def _new_storage_bytes(tensors: Iterable[torch.Tensor], seen: set[int]) -> int:
    # The storage object's own address, not its data's: on the meta device all data addresses are 0.
    size = 0
    for tensor in tensors:
        # Of a sharded tensor the part that this process has.
        storage = (tensor.to_local() if isinstance(tensor, DTensor) else tensor).untyped_storage()
        if storage_id(storage) not in seen:
            seen.add(storage_id(storage))
            size += storage.nbytes()
    return size
