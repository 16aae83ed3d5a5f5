"""A ledger of tensor memory: every storage that lives while a block runs, when it came, went, and what it was for."""

import math
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn

from rowsft.compat.torch import FakeTensor, TorchDispatchMode, backward_pass, storage_id
from rowsft.layers.quantised import stored
from rowsft.measure import cpu_kernels
from rowsft.measure.memory import resident_groups

PARTS = (
    "base_weights",
    "trainable_weights",
    "gradients",
    "optimizer_state",
    "saved_activations",
    "temporary",
)
# A GPU's caching allocator hands out multiples of this many bytes.
CUDA_BLOCK_BYTES = 512
# Fake tensors are asked for their device time and again, through every mode.
_ASKS_DEVICE = torch.ops.prim.device.default


@dataclass
class Entry:
    """One storage: its size in bytes, and its part of the memory."""

    size: int
    part: str = "temporary"


@dataclass(frozen=True)
class Moment:
    """Bytes by part at one time; `phase` is the phase that it fell in."""

    phase: str
    parts: dict[str, int]

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())


class Ledger(TorchDispatchMode):
    """Context manager that enters every storage that operators of this thread, and autograd on its behalf, allocate.

    Works on any device, the meta device too, where nothing is computed and the sizes are all there is. block_bytes:
    what sizes are rounded up to. What exists before the block is entered by `hold`. `phase` may be set at any time;
    while it is "forward", what happens from the first operator of a backward pass on is entered under "backward".

    Which part a storage belongs to follows from its life: what the forward pass leaves behind when a backward pass
    begins was saved for it, and so is what a backward pass computes with gradients switched on (recomputation under
    checkpointing); gradients and optimizer state are named by `hold` and `watch_gradients`. Buffers that one operator
    allocates and frees inside itself are not seen, but for the known large ones: casts, and logsumexp's. What is
    missing of a CPU's fused attention is a buffer for every thread.
    """

    def __init__(self, block_bytes: int = 1):
        super().__init__()
        self.block_bytes = block_bytes
        self._phase = "forward"
        self._went_back = False
        self.entries: list[Entry] = []
        # (entry, +1 or -1, phase) in the order of time; a phase begins with (None, 0, phase).
        self._events: list[tuple[int | None, int, str]] = []
        # The storage's own address -> its entry, and the reference whose end tells of its release.
        self._live: dict[int, tuple[int, weakref.ref]] = {}
        self._left_by_forward: set[int] = set()
        self._numbers: list[int] = []
        # Whether the kernels are a CPU's, whose sizes are not rounded up.
        self._on_cpu = block_bytes == 1
        self._around = ExitStack()
        self._closed = False
        self._first = 0

    @property
    def phase(self) -> str:
        """What the step is doing."""
        return self._phase

    @phase.setter
    def phase(self, name: str) -> None:
        self._phase = name
        self._went_back = False
        self._events.append((None, 0, name))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is _ASKS_DEVICE:
            return func(*args)
        scratch = [self._begin(size) for size in self._scratch(func, args)]
        out = func(*args, **(kwargs or {}))
        in_backward = _in_backward()
        if in_backward and self._left_by_forward:
            for entry in self._left_by_forward:
                self.entries[entry].part = "saved_activations"
            self._left_by_forward.clear()
        for tensor in tensors_in(out):
            made = self._enter(tensor)
            if made is None:
                continue
            if not in_backward:
                self._left_by_forward.add(made)
            elif torch.is_grad_enabled():
                self.entries[made].part = "saved_activations"
        if self._on_cpu and cpu_kernels.keeps_number(func, args):
            self._keep_number(args[0], in_backward)
        for entry in scratch:
            self._end(entry)
        return out

    def __enter__(self):
        if self._on_cpu:
            self._around.enter_context(cpu_kernels.random_states_entered(self._enter_random_state))
        return super().__enter__()

    def __exit__(self, *raised):
        self._around.close()
        self._closed = True
        return super().__exit__(*raised)

    def hold(self, part: str, tensors: Iterable[torch.Tensor]) -> None:
        """Enter tensors that exist already, and say of all that they are of `part`; skip what is no tensor."""
        given = (tensor for tensor in tensors if isinstance(tensor, torch.Tensor))
        for tensor in (own for each in given for own in stored(each)):
            if not self._counts(tensor):
                continue
            self._enter(tensor)
            entry, _ = self._live[storage_id(tensor.untyped_storage())]
            self.entries[entry].part = part
            self._left_by_forward.discard(entry)

    def hold_model(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """`hold` all that a model and its optimizer keep, each in its part; shared storages in the first that fits."""
        for part, tensors in reversed(resident_groups(model, optimizer).items()):
            self.hold(part, tensors)

    def begin(self) -> None:
        """What was held up to now was there from the start: it is one moment."""
        self._first = len(self._events)

    def watch_gradients(self, model: nn.Module) -> None:
        """Name the gradients of the trained parameters as they come, until the block ends."""
        for parameter in model.parameters():
            if parameter.requires_grad:
                hook = parameter.register_post_accumulate_grad_hook(lambda p: self.hold("gradients", [p.grad]))
                self._around.callback(hook.remove)

    def moments(self) -> Iterator[Moment]:
        """The bytes by part after every event since `begin`, oldest first. The parts are those known now."""
        parts = dict.fromkeys(PARTS, 0)
        for index, (entry, sign, phase) in enumerate(self._events):
            if entry is not None:
                held = self.entries[entry]
                parts[held.part] += sign * held.size
            if index + 1 < self._first:
                continue
            yield Moment(phase, dict(parts))

    def peaks(self) -> dict[str, Moment]:
        """The largest moment of every phase, in the order in which phases began.

        What a phase begins with counts as its first moment.
        """
        largest: dict[str, Moment] = {}
        before: Moment | None = None
        for moment in self.moments():
            if moment.phase not in largest and before is not None:
                largest[moment.phase] = Moment(moment.phase, before.parts)
            best = largest.get(moment.phase)
            if best is None or moment.total > best.total:
                largest[moment.phase] = moment
            before = moment
        return largest

    def _enter(self, tensor: torch.Tensor) -> int | None:
        """The new entry of a tensor's storage; None where it has one, or lies elsewhere."""
        if not self._counts(tensor):
            return None
        storage = tensor.untyped_storage()
        address = storage_id(storage)
        if address in self._live:
            return None
        entry = self._begin(storage.nbytes())
        self._live[address] = entry, weakref.ref(storage, lambda _: self._leave(address, entry))
        return entry

    def _enter_random_state(self, state: torch.Tensor) -> None:
        entry = self._enter(state)
        if entry is not None and not _in_backward():
            self._left_by_forward.add(entry)

    def _begin(self, size: int, part: str = "temporary") -> int:
        """The new entry of `size` bytes, rounded up to blocks, that no operator returns."""
        entry = len(self.entries)
        self.entries.append(Entry(-(-size // self.block_bytes) * self.block_bytes, part))
        self._events.append((entry, 1, self._phase_now()))
        return entry

    def _end(self, entry: int) -> None:
        self._events.append((entry, -1, self._phase_now()))

    def _scratch(self, func, args: Sequence) -> list[int]:
        """Sizes of the known large buffers that an operator allocates and frees inside itself."""
        if func is torch.ops.aten.logsumexp.default and self._counts(args[0]):
            # Its largest values and the differences from them, on any device.
            summed = math.prod(args[0].shape[dim] for dim in args[1])
            values = args[0].numel() // max(1, summed), args[0].numel()
            return [count * args[0].element_size() for count in values]
        if func.namespace == "bitsandbytes" and func._schema.name.endswith("::gemm_4bit"):
            # What the codes stand for, in the input's dtype; with it the scales, where they are quantised too.
            nested = len(args) > 7 and args[7] is not None
            return [math.prod(args[2]) * args[0].element_size(), *([2 * 4 * args[7].numel()] if nested else [])]
        return cpu_kernels.converted_bytes(func, args) if self._on_cpu else []

    def _keep_number(self, factor: torch.Tensor, in_backward: bool) -> None:
        if not in_backward and factor.requires_grad:
            self._numbers.append(self._begin(cpu_kernels.NUMBER_BYTES, "saved_activations"))
        elif in_backward and self._numbers:
            self._end(self._numbers.pop())

    def _counts(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor takes memory of the device: a GPU's ledger leaves out batches and counters on the host.

        Sparse tensors have no storage of their own; their parts are tensors that have.
        """
        if isinstance(tensor, FakeTensor):
            # Of these, which claim to be on a CPU, a plan under autocast is made. All of them count.
            return True
        on_host = tensor.device.type == "cpu" and not self._on_cpu
        return not on_host and tensor.layout is torch.strided

    def _leave(self, address: int, entry: int) -> None:
        if not self._closed:
            self._left_by_forward.discard(entry)
            del self._live[address]
            self._end(entry)

    def _phase_now(self) -> str:
        # A backward pass leaves gradients: what comes after it is no forward's, until the next one is announced.
        self._went_back |= self._phase == "forward" and _in_backward()
        return "backward" if self._went_back else self._phase


def tensors_in(value) -> Iterator[torch.Tensor]:
    """The tensors among an operator's arguments or results. (Every operator comes here: torch's trees take longer.)"""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


def _in_backward() -> bool:
    return backward_pass() != -1
