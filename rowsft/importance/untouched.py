"""Scoring borrows the model: it and the random streams come back as they were."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import torch
from torch import nn

from rowsft.compat.torch import buffers_of


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Run the body with the model frozen, in eval mode, gradients enabled and every `.grad` set aside; then undo it.

    Restored, also when the body raises: train/eval mode of every module, requires_grad and `.grad` (the same tensors)
    of every parameter, buffers (the same tensors with the same values), and the random streams of Python, NumPy and
    torch (CPU and GPUs). Weights are not copied: the body must not write them.
    """
    modes = [(module, module.training) for module in model.modules()]
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.clone())
        for module in model.modules()
        for name, buffer in buffers_of(module).items()
    ]
    with _random_streams(), torch.inference_mode(False), torch.enable_grad():
        try:
            model.eval()
            for parameter, _, _ in parameters:
                parameter.requires_grad_(False)
                parameter.grad = None
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for parameter, required, grad in parameters:
                parameter.requires_grad_(required)
                parameter.grad = grad
            for module, name, buffer, value in buffers:
                buffers_of(module)[name] = buffer
                if buffer is not None and value is not None and not torch.equal(buffer, value):
                    buffer.copy_(value)


@contextmanager
def _random_streams() -> Iterator[None]:
    python, numbers = random.getstate(), numpy.random.get_state()
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=gpus):
        try:
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(numbers)
