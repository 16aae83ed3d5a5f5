"""GaLore (Zhao et al., arXiv 2403.03507): full fine-tuning whose AdamW sees every gradient through a low-rank window.

Written anew after the authors' galore_torch 1.0 (their projection `std`), which keeps its projections as objects that
no checkpoint can be loaded with. Left out: the 8-bit and the layerwise forms, and projection of one side chosen.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rowsft.baselines.full import Full
from rowsft.errors import UserError
from rowsft.method_info import MethodInfo
from rowsft.methods.base import Method, OptimizedMethod, ResolvedMethod
from rowsft.selection.budget import Budget
from rowsft.selection.targets import Targets, eligible_layers


class GaLoreAdamW(torch.optim.Optimizer):
    """The authors' AdamW. Groups with a `rank` project gradients (m, n) to (m, rank), or to (rank, n) where m < n.

    The projection is made of the gradient's singular vectors, anew every `period` steps; both averages, kept as they
    are then, have the projected shape, and what AdamW makes of them is projected back, times `scale`.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, weight_decay: float = 0.0):
        super().__init__(groups, {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        """See torch.optim.Optimizer.step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, projected = self.state[parameter], "rank" in group
        done = state.get("step", 0)
        if projected:
            if done % group["period"] == 0:
                state["projection"] = _projection(gradient, group["rank"])
            gradient = _project(gradient, state["projection"])
        if not done:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
        state["step"] = done + 1
        first, second = group["betas"]
        state["exp_avg"].mul_(first).add_(gradient, alpha=1 - first)
        state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        change = state["exp_avg"] / state["exp_avg_sq"].sqrt().add_(group["eps"])
        if projected:
            change = _project_back(change, state["projection"]).mul_(group["scale"])
        size = math.sqrt(1 - second ** state["step"]) / (1 - first ** state["step"])
        parameter.add_(change, alpha=-group["lr"] * size)
        if group["weight_decay"]:
            parameter.mul_(1 - group["lr"] * group["weight_decay"])


def _is_tall(shape: torch.Size) -> bool:
    return shape[0] >= shape[1]


def _projection(gradient: Tensor, rank: int) -> Tensor:
    """(rank, n) of the right singular vectors of a tall gradient, (m, rank) of the left ones of a wide one."""
    left, _, right = torch.linalg.svd(gradient.float(), full_matrices=False)
    kept = right[:rank] if _is_tall(gradient.shape) else left[:, :rank]
    # Alone: a view would keep all of them.
    return kept.to(gradient.dtype).clone()


def _project(gradient: Tensor, projection: Tensor) -> Tensor:
    return gradient @ projection.T if _is_tall(gradient.shape) else projection.T @ gradient


def _project_back(change: Tensor, projection: Tensor) -> Tensor:
    # Only a tall one's projection has the rank first: a wide one's has m rows, and the change n > m columns.
    is_tall = change.shape[1] == projection.shape[0]
    return change @ projection if is_tall else projection @ change


@dataclass
class GaLore(OptimizedMethod, Full):
    """Train everything; the layers that adapters would tune are stepped through projections.

    No budget applies: the optimizer's state is small, not what is trained. Keys: conf/method/galore.yaml.
    """

    info: ClassVar[MethodInfo] = replace(
        Full.info, name="galore", title="GaLore", order=62, colour="#117733", marker=">"
    )
    compared: ClassVar[dict[str, list[str]]] = {}
    own_optimizer: ClassVar[str | None] = "GaLoreAdamW"

    name: str = info.name
    rank: int = 128
    period: int = 200
    scale: float = 0.25
    layers: list[str] = field(default_factory=list, init=False)

    def __post_init__(self):
        for key in ("rank", "period"):
            if getattr(self, key) < 1:
                raise UserError(f"method.{key}={getattr(self, key)}: expected 1 or more")
        if not self.scale > 0:
            raise UserError(f"method.scale={self.scale}: expected a number above 0")

    @property
    def between_steps(self) -> str:
        """What the optimizer does."""
        return f"gradients of the layers projected to rank {self.rank}, each made anew every {self.period} steps"

    def solve(self, budget: Budget, model: nn.Module, targets: Targets) -> ResolvedMethod:
        """All parameters, as in full fine-tuning, and the names of the layers that are projected."""
        resolved = super().solve(budget, model, targets)
        return replace(resolved, values={**resolved.values, "layers": list(eligible_layers(model, targets))})

    def attach(self, model: nn.Module, resolved: ResolvedMethod) -> nn.Module:
        """Make every parameter trainable."""
        self.layers = resolved.values["layers"]
        return super().attach(model, resolved)

    def make_optimizer(self, model: nn.Module, rate: float, weight_decay: float) -> torch.optim.Optimizer:
        """GaLore's AdamW over the layers' weights, and over all others without projection."""
        projected = [model.get_submodule(name).weight for name in self.layers]
        ids = {id(parameter) for parameter in projected}
        others = [parameter for parameter in model.parameters() if id(parameter) not in ids]
        settings = {"rank": self.rank, "period": self.period, "scale": self.scale}
        return GaLoreAdamW([{"params": others}, {"params": projected, **settings}], rate, weight_decay)


METHOD: type[Method] = GaLore
