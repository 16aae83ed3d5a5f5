"""One training step on the meta device: what it holds, part by part, and what it computes."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from rowsft.compat.optimizer_8bit import adamw_8bit
from rowsft.compat.torch import make_state
from rowsft.measure.ledger import CUDA_BLOCK_BYTES, Ledger, Moment
from rowsft.methods.optimizing import Maker, Optimizing
from rowsft.plan.autocast import fake_device
from rowsft.plan.cost import Costs
from rowsft.plan.without_data import without_data

PHASES = ("forward", "backward", "optimizer_step")
# Steps that the planned one is taken to be of: what methods cut their schedules to.
_TOTAL = 1000


@dataclass(frozen=True)
class StepPlan:
    """What one warm optimizer step needs. peaks: phase -> its largest moment, in bytes by part.

    costs: operations and bytes moved of forward and backward, operator by operator.
    """

    peaks: dict[str, Moment]
    costs: Costs
    ledger: Ledger

    @property
    def peak(self) -> Moment:
        """The largest moment of the step."""
        return max(self.peaks.values(), key=lambda moment: moment.total)


class StatefulAdamW(torch.optim.AdamW):
    """AdamW as a GPU's fused kernel runs it: state, and no temporary copies. On the meta device nothing is updated."""

    @torch.no_grad()
    def step(self, closure=None):
        """Make the state that is missing."""
        make_state(self)


def plan_step(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    gpu: bool,
    padded: bool,
    accumulation: int = 1,
    max_grad_norm: float = 0.0,
    loss_arguments: Mapping | None = None,
    optimizing: Optimizing | None = None,
    optimizer_name: str = "adamw",
) -> StepPlan:
    """A warm step of `model`, which is attached and has no data: the optimizer's state is there when it begins.

    batch: one micro-batch of meta tensors; accumulation: micro-batches of a step. loss_arguments: what the trainer
    gives the model's forward besides. optimizing: what the method says of its steps, which may freeze parts of the
    model until the next ones; None where it says nothing. optimizer_name: that of `trainer.optimizer`.
    """
    optimizing = optimizing or Optimizing()
    trained = any(parameter.requires_grad for parameter in model.parameters())
    optimizer = optimizing.optimizer(model, _maker(gpu, optimizer_name), 1e-4) if trained else None

    def after_step() -> None:
        if optimizer is not None:
            optimizing.after_step(model, optimizer, 0, _TOTAL)

    with fake_device(model, gpu), without_data(gpu, padded):
        if optimizer is not None:
            optimizing.begin(model, optimizer, 0, _TOTAL)
        _warm_up(model, optimizer, batch, accumulation > 1, loss_arguments or {}, after_step)
        ledger, costs = Ledger(CUDA_BLOCK_BYTES if gpu else 1), Costs()
        with ledger:
            ledger.hold_model(model, optimizer)
            ledger.hold("temporary", batch.values())
            ledger.watch_gradients(model)
            ledger.begin()
            # The last of the micro-batches: from the second on all are alike.
            run_step(model, optimizer, batch, 1, max_grad_norm, loss_arguments or {}, ledger, costs, after_step)
    for operator in costs.operators:
        costs.operators[operator] *= accumulation
    return StepPlan(ledger.peaks(), costs, ledger)


def _warm_up(
    model: nn.Module,
    optimizer,
    batch: Mapping[str, Tensor],
    keep_gradients: bool,
    arguments: Mapping,
    after_step: Callable[[], None],
) -> None:
    """Leave what the steps before leave: state of the optimizer, buffers made on the way, and, where micro-batches
    accumulate, the gradients of those before."""
    if keep_gradients and optimizer is not None:
        # Recomputing would give the same gradients, later.
        modules: Iterable[Any] = model.modules()
        recomputing = [module for module in modules if getattr(module, "gradient_checkpointing", False)]
        for module in recomputing:
            module.gradient_checkpointing = False
        model(**batch, **arguments).loss.backward()
        for module in recomputing:
            module.gradient_checkpointing = True
        optimizer.step()
        after_step()
        return
    with torch.no_grad():
        model(**batch, **arguments)
    if optimizer is not None:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)
        optimizer.step()
        after_step()
        optimizer.zero_grad()


def run_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    batch: Mapping[str, Tensor],
    accumulation: int = 1,
    max_grad_norm: float = 0.0,
    loss_arguments: Mapping = MappingProxyType({}),
    ledger: Ledger | None = None,
    costs: Costs | None = None,
    after_step: Callable[[], None] | None = None,
) -> None:
    """One optimizer step as the trainer takes it, on any device; without an optimizer only the loss is computed.

    costs: those of the last micro-batch are entered. after_step: called when the optimizer has stepped.
    """

    def enter(phase: str) -> None:
        if ledger is not None:
            ledger.phase = phase

    for number in range(accumulation):
        enter("forward")
        with costs if costs is not None and number == accumulation - 1 else nullcontext():
            loss = model(**batch, **loss_arguments).loss
            if optimizer is not None:
                enter("backward")
                loss.backward()
                # As `runner.extra_step` has it: the loss outlives its backward pass.
                enter("forward" if number + 1 < accumulation else "optimizer_step")
        del loss
    if optimizer is not None:
        if max_grad_norm:
            trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            torch.nn.utils.clip_grad_norm_(trained, max_grad_norm)
        optimizer.step()
        if after_step is not None:
            after_step()
        optimizer.zero_grad()


def _maker(gpu: bool, name: str) -> Maker:
    """What makes the optimizer of the settings as the device would run it."""

    def make(model: nn.Module, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        if name == "adamw_8bit":
            return adamw_8bit(model, groups, weight_decay=0.0)
        if gpu:
            return StatefulAdamW(groups, weight_decay=0.0, foreach=False, capturable=True)
        return torch.optim.AdamW(groups, weight_decay=0.0, foreach=False)

    return make
