"""A task head trained for a few steps before scoring: under a fresh one, gradients say little about the rows."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from rowsft.errors import UserError
from rowsft.importance.calibration import loss_of


@contextmanager
def warmed_head(
    model: nn.Module, heads: Sequence[str], batches: Iterable[Mapping], learning_rate: float
) -> Iterator[list[float]]:
    """Train the modules named `heads` on `batches`, one AdamW step each, and put them back when the block ends.

    Put back, because every method has to start its training from the same head; what the warm head is for is the
    scoring inside the block. The model stays in eval mode, so no random stream moves; the rest of it is frozen and
    unchanged. Yields the loss of each step. Raises UserError for a model without such a head, and for a loss that is
    not finite.
    """
    parameters = list(dict.fromkeys(p for name in heads for p in model.get_submodule(name).parameters()))
    if not parameters:
        raise UserError(
            "trainer.warm_head: this task trains no fresh head that could be warmed; set trainer.warm_head=0"
        )
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    modes = {module: module.training for module in model.modules()}
    before = [parameter.detach().clone() for parameter in parameters]
    try:
        model.eval().requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        losses = _train(model, parameters, batches, learning_rate)
        _restore(wanted, modes)
        yield losses
    finally:
        _restore(wanted, modes)
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)


def _train(model: nn.Module, parameters: list[nn.Parameter], batches: Iterable[Mapping], rate: float) -> list[float]:
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0, foreach=False)
    losses = []
    for index, batch in enumerate(batches):
        loss = loss_of(model, batch, index)
        gradients = torch.autograd.grad(loss, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        losses.append(loss.item())
    for parameter in parameters:
        parameter.grad = None
    return losses


def _restore(wanted: Mapping[nn.Parameter, bool], modes: Mapping[nn.Module, bool]) -> None:
    for parameter, flag in wanted.items():
        parameter.requires_grad_(flag)
    for module, mode in modes.items():
        module.training = mode
