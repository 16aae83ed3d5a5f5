"""LISA (Pan et al., arXiv 2403.17919): the whole model is trained, but of its blocks only a few at a time."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import nn
from torch.optim import Optimizer

from rowsft.baselines.full import Full
from rowsft.errors import UserError
from rowsft.layers.lists import outermost_lists
from rowsft.method_info import MethodInfo
from rowsft.methods.base import Method, OptimizedMethod, ResolvedMethod
from rowsft.selection.budget import Budget
from rowsft.selection.targets import Targets


@dataclass
class Lisa(OptimizedMethod, Full):
    """`blocks` of the model's blocks, drawn anew every `period` steps, and all that is in none. No budget applies.

    What is outside of the blocks, embeddings, last norm and head, is always trained. A block that is frozen loses its
    AdamW state. Keys: conf/method/lisa.yaml.
    """

    info: ClassVar[MethodInfo] = replace(Full.info, name="lisa", title="LISA", order=61, colour="#44AA99", marker="<")
    compared: ClassVar[dict[str, list[str]]] = {}

    name: str = info.name
    blocks: int = 2
    period: int = 20
    seed: int = 0
    drawn: int = field(default=-1, init=False)

    def __post_init__(self):
        for key in ("blocks", "period"):
            if getattr(self, key) < 1:
                raise UserError(f"method.{key}={getattr(self, key)}: expected 1 or more")

    @property
    def between_steps(self) -> str:
        """Which blocks are trained."""
        return f"{self.blocks} blocks at a time, drawn anew every {self.period} steps, the others frozen"

    def solve(self, budget: Budget, model: nn.Module, targets: Targets) -> ResolvedMethod:
        """All parameters, as in full fine-tuning. Raises UserError for a model with fewer blocks than that."""
        resolved = super().solve(budget, model, targets)
        found = len(blocks_of(model))
        if found <= self.blocks:
            raise UserError(
                f"method.blocks={self.blocks}: {type(model).__name__} has {found} blocks; expected fewer than that, or "
                "use method=full"
            )
        return resolved

    def begin(self, model: nn.Module, optimizer: Optimizer, step: int, total: int) -> None:
        """Freeze the blocks that the period of the next step leaves out."""
        self._draw(model, optimizer, step // self.period)

    def after_step(self, model: nn.Module, optimizer: Optimizer, step: int, total: int) -> None:
        """Draw the next period's blocks when one is over; but not after the last step, as training ends there."""
        if step // self.period > self.drawn and step < total:
            self._draw(model, optimizer, step // self.period)

    def _draw(self, model: nn.Module, optimizer: Optimizer, period: int) -> None:
        found, self.drawn = blocks_of(model), period
        # By the period alone: a run that goes on from a checkpoint draws the same.
        order = torch.Generator(device="cpu").manual_seed(1_000_003 * self.seed + period)
        active = set(torch.randperm(len(found), generator=order, device="cpu")[: self.blocks].tolist())
        for number, block in enumerate(found):
            for parameter in block.parameters():
                parameter.requires_grad_(number in active)
                if number not in active:
                    parameter.grad = None
                    optimizer.state.pop(parameter, None)


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """Return the blocks of a model: its longest list of modules. Raises UserError where there is none."""
    lists = list(outermost_lists(model))
    if not lists:
        raise UserError(f"method=lisa: {type(model).__name__} has no list of blocks; use method=full")
    return max(lists, key=len)


METHOD: type[Method] = Lisa
