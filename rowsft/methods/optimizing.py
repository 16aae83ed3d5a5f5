"""How what a method trains is stepped: by the settings, but for what the method itself says.

Runner, planner, memory probes and benchmarks ask here, each with its own way of making the optimizer of the settings.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from rowsft.errors import UserError
from rowsft.methods.base import Method, OptimizedMethod, ParameterGroup

if TYPE_CHECKING:
    # Benchmarks make methods on machines without Hydra.
    from rowsft.config.settings import TrainerSettings

#: Makes the optimizer of the settings: (model, parameter groups in torch's form with `params` and `lr`) -> optimizer.
Maker = Callable[[nn.Module, list[dict[str, Any]]], Optimizer]


class Optimizing:
    """The optimizer of an attached model, and what its method does around the steps."""

    def __init__(self, method: Method | None = None):
        self._own = method if isinstance(method, OptimizedMethod) else None

    @property
    def takes_part(self) -> bool:
        """Whether the method says anything at all."""
        return self._own is not None

    def groups(self, model: nn.Module) -> list[ParameterGroup]:
        """Return what is trained, in groups with parameters."""
        if self._own is None:
            return [ParameterGroup("all", [parameter for parameter in model.parameters() if parameter.requires_grad])]
        return [group for group in self._own.parameter_groups(model) if group.parameters]

    def optimizer(self, model: nn.Module, make: Maker, rate: float, weight_decay: float = 0.0) -> Optimizer:
        """Return the method's own optimizer, or the one that `make` makes of its groups."""
        if self._own is not None and self._own.own_optimizer is not None:
            return self._own.make_optimizer(model, rate, weight_decay)
        return make(model, [{"params": g.parameters, "lr": rate * g.rate_factor} for g in self.groups(model)])

    def begin(self, model: nn.Module, optimizer: Optimizer, step: int, total: int) -> None:
        """See `OptimizedMethod.begin`."""
        if self._own is not None:
            self._own.begin(model, optimizer, step, total)

    def after_step(self, model: nn.Module, optimizer: Optimizer, step: int, total: int) -> None:
        """See `OptimizedMethod.after_step`."""
        if self._own is not None:
            self._own.after_step(model, optimizer, step, total)

    def in_record(self, model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
        """Return what a record says of it: the optimizer's class, and of a method that differs its groups and work."""
        # accelerate wraps it.
        made = {"optimizer": type(getattr(optimizer, "optimizer", optimizer)).__name__}
        if self._own is None:
            return made
        groups = [
            {"name": g.name, "parameters": sum(p.numel() for p in g.parameters), "rate_factor": g.rate_factor}
            for g in self.groups(model)
        ]
        return {**made, "groups": groups, "between_steps": self._own.between_steps}


def check_optimizing(method: Method, settings: "TrainerSettings") -> None:
    """Raise UserError where a method's own way of stepping and the settings do not go together."""
    if not isinstance(method, OptimizedMethod):
        return
    if method.own_optimizer is not None and settings.optimizer != "adamw":
        raise UserError(
            f"trainer.optimizer={settings.optimizer}: method={method.name} has an optimizer of its own "
            f"({method.own_optimizer}); expected adamw, which leaves it that one"
        )
    if settings.strategy is not None and settings.strategy not in method.strategies:
        known = f"use trainer={' or trainer='.join(method.strategies)}, or " if method.strategies else ""
        raise UserError(
            f"trainer.strategy={settings.strategy}: method={method.name} is not known to train like one process under "
            f"it; {known}leave it out to train in one process"
        )
