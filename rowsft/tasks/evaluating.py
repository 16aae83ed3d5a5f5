"""Running a model over encoded examples without training it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from rowsft.batch import device_of, on_device, tokens
from rowsft.tasks import Progress


@contextmanager
def evaluation_mode(model) -> Iterator[torch.device]:
    """Eval mode without gradients inside; every module's own mode back afterwards. Yields the model's device.

    no_grad rather than inference_mode: training may go on afterwards with tensors that modules cached in a forward.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield device_of(model)
    finally:
        for module, mode in modes.items():
            module.training = mode


def by_length(encoded: list[dict], batch_size: int) -> list[list[int]]:
    """Indices of `encoded` in batches of similar length, longest first: little padding, the memory peak early."""
    order = sorted(range(len(encoded)), key=lambda i: -tokens(encoded[i]))
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def run_batches(
    model,
    encoded: list[dict],
    collate: Callable[[list[dict]], dict[str, Any]],
    batch_size: int,
    progress: Progress,
    read: Callable[[Any, dict[str, Any]], list],
) -> list:
    """One result an encoded example, in the order given: `read(output, batch)` lists those of one batch."""
    results: list = [None] * len(encoded)
    batches = by_length(encoded, batch_size)
    with evaluation_mode(model) as device:
        for indices in progress(batches, total=len(batches)) if progress else batches:
            batch = on_device(collate([encoded[i] for i in indices]), device)
            labels = batch.pop("labels")
            # The output has no name: it would keep one batch's logits while the next one's are computed.
            read_out = read(model(**batch), {**batch, "labels": labels})
            for i, result in zip(indices, read_out, strict=True):
                results[i] = result
    return results
