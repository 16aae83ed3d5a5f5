"""Peaks of new allocations on a CPU, which repeat to the byte, and the frozen model that they are compared with."""

from collections.abc import Callable

from rows import family

from rowsft.measure.memory import AllocationPeak


def frozen(name: str):
    """The frozen model, whose backward runs down to the embeddings; a batch and its usual target modules."""
    model, batch, targets = family(name)
    model.requires_grad_(False)
    model.enable_input_require_grads()
    return model, batch, targets


def peak_bytes(action: Callable[[], object]) -> int:
    """Bytes of new allocations at the worst moment of `action`."""
    with AllocationPeak("cpu") as peak:
        action()
    return peak.new_peak_bytes


def warm_peak(model, batch) -> int:
    """Bytes of new allocations at the worst moment of a forward and backward, after two of them."""

    def step():
        model(**batch).loss.backward()
        model.zero_grad()

    step(), step()
    return peak_bytes(step)
