"""A ledger of tensor memory: every storage that lives while a block runs, when it came, went, and what it was for."""

import math
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce

import torch
from torch import nn

from rowsft.compat.torch import FakeTensor, TorchDispatchMode, backward_pass, storage_id
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
_KEEPS_NUMBER = (torch.ops.aten.mul.Tensor, torch.ops.aten.div.Tensor)
_NUMBER_BYTES = 8
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
        self._hooks: list = []
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
        scratch = self._begin_casts(func, args) + self._begin_logsumexp(func, args)
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
        if func in _KEEPS_NUMBER and not isinstance(args[1], torch.Tensor) and self.block_bytes == 1:
            self._keep_number(args[0], in_backward)
        for entry in scratch:
            self._events.append((entry, -1, self._phase_now()))
        return out

    def __enter__(self):
        # Checkpointing keeps the random state of every block in a tensor that no operator makes.
        self._get_state = torch.get_rng_state
        if self.block_bytes == 1:
            torch.get_rng_state = self._entered_state
        return super().__enter__()

    def __exit__(self, *raised):
        torch.get_rng_state = self._get_state
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._closed = True
        return super().__exit__(*raised)

    def hold(self, part: str, tensors: Iterable[torch.Tensor]) -> None:
        """Enter tensors that exist already, and say of all that they are of `part`; skip what is no tensor."""
        for tensor in tensors:
            if not isinstance(tensor, torch.Tensor) or not self._counts(tensor):
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
                self._hooks.append(hook)

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
        size = -(-storage.nbytes() // self.block_bytes) * self.block_bytes
        entry = len(self.entries)
        self.entries.append(Entry(size))
        self._live[address] = entry, weakref.ref(storage, lambda _: self._leave(address, entry))
        self._events.append((entry, 1, self._phase_now()))
        return entry

    def _entered_state(self) -> torch.Tensor:
        state = self._get_state()
        entry = self._enter(state)
        if entry is not None and not _in_backward():
            self._left_by_forward.add(entry)
        return state

    def _begin_casts(self, func, args: tuple) -> list[int]:
        """Entries of what a CPU's elementwise operator converts to the common dtype first, for as long as it runs."""
        if self.block_bytes != 1 or torch.Tag.pointwise not in func.tags:
            return []
        tensors = [argument for argument in args if isinstance(argument, torch.Tensor) and argument.ndim]
        if len({tensor.dtype for tensor in tensors}) < 2:
            return []
        common = reduce(torch.promote_types, [tensor.dtype for tensor in tensors])
        begun = []
        for tensor in tensors:
            if tensor.dtype != common:
                begun.append(len(self.entries))
                self._events.append((len(self.entries), 1, self._phase_now()))
                self.entries.append(Entry(tensor.numel() * common.itemsize))
        return begun

    def _begin_logsumexp(self, func, args: tuple) -> list[int]:
        """Entries of logsumexp's largest values and of the differences from them, on any device, while it runs."""
        if func is not torch.ops.aten.logsumexp.default or not self._counts(args[0]):
            return []
        summed = math.prod(args[0].shape[dim] for dim in args[1])
        begun = []
        for count in (args[0].numel() // max(1, summed), args[0].numel()):
            size = count * args[0].element_size()
            begun.append(len(self.entries))
            self._events.append((len(self.entries), 1, self._phase_now()))
            self.entries.append(Entry(-(-size // self.block_bytes) * self.block_bytes))
        return begun

    def _keep_number(self, factor: torch.Tensor, in_backward: bool) -> None:
        """A number in a product is kept for the backward pass as a tensor that no operator makes, on the CPU."""
        if not in_backward and factor.requires_grad:
            self._numbers.append(len(self.entries))
            self._events.append((len(self.entries), 1, self._phase_now()))
            self.entries.append(Entry(_NUMBER_BYTES, "saved_activations"))
        elif in_backward and self._numbers:
            self._events.append((self._numbers.pop(), -1, self._phase_now()))

    def _counts(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor takes memory of the device: a GPU's ledger leaves out batches and counters on the host.

        Sparse tensors have no storage of their own; their parts are tensors that have.
        """
        if isinstance(tensor, FakeTensor):
            # Of these, which claim to be on a CPU, a plan under autocast is made. All of them count.
            return True
        on_host = tensor.device.type == "cpu" and self.block_bytes != 1
        return not on_host and tensor.layout is torch.strided

    def _leave(self, address: int, entry: int) -> None:
        if not self._closed:
            self._left_by_forward.discard(entry)
            del self._live[address]
            self._events.append((entry, -1, self._phase_now()))

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
