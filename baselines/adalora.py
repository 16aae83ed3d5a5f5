"""AdaLoRA (Zhang et al., arXiv 2303.10512) through PEFT: singular values of the update are cut while it is trained."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from peft import AdaLoraConfig, PeftModel, set_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from rowsft.baselines.lora import Lora
from rowsft.errors import UserError
from rowsft.layers.matrix import LinearLayer, layer_shape
from rowsft.method_info import MethodInfo
from rowsft.methods.base import Method, OptimizedMethod, ResolvedMethod
from rowsft.selection.budget import Unit

# In the optimizer's state: averages of sensitivity and uncertainty by parameter, and which singular values are kept.
_STATE, _AVERAGES, _KEPT = "adalora", ("exp_avg_ipt", "exp_avg_unc"), "rank_pattern"


@dataclass
class AdaLora(OptimizedMethod, Lora):
    """W + s B diag(E) A with init_r singular values E in every layer, of which the least important are set to zero.

    The budget counts what is trained from the first step on, init_r of them; `target` says how many are left. It is
    solved at LoRA's price for a rank; the singular values come on top, a thousandth of it. What is cut stays in memory,
    and is set to zero again after every step. Keys: conf/method/adalora.yaml.
    """

    info: ClassVar[MethodInfo] = replace(
        Lora.info, name="adalora", title="AdaLoRA", order=38, colour="#6A3D9A", marker="d"
    )
    compared: ClassVar[dict[str, list[str]]] = {}

    name: str = info.name
    target: float = 2 / 3
    tinit: float = 0.1
    tfinal: float = 0.3
    delta_t: int = 10
    orth_reg_weight: float = 0.5
    beta1: float = 0.85
    beta2: float = 0.85

    def __post_init__(self):
        super().__post_init__()
        for key in ("target", "beta1", "beta2"):
            if not 0 < getattr(self, key) < 1:
                raise UserError(f"method.{key}={getattr(self, key)}: expected a number between 0 and 1")
        if not (self.tinit >= 0 and self.tfinal >= 0 and self.tinit + self.tfinal < 1):
            raise UserError(
                f"method.tinit={self.tinit}, method.tfinal={self.tfinal}: expected shares of the steps, from 0, that "
                "leave some between them in which ranks are cut"
            )
        if self.delta_t < 1 or self.orth_reg_weight < 0:
            raise UserError(
                f"method.delta_t={self.delta_t}, method.orth_reg_weight={self.orth_reg_weight}: expected 1 step or "
                "more, and 0 or more"
            )

    @property
    def between_steps(self) -> str:
        """Cutting, and the term in the loss."""
        return (
            f"ranks fall to {self.target:.3g} of the first ones, cut every {self.delta_t} steps but for the first "
            f"{100 * self.tinit:g} % and the last {100 * self.tfinal:g} %; the loss has {self.orth_reg_weight:g} times "
            "the distance of A and B from orthogonal"
        )

    def units(self, layers: Mapping[str, LinearLayer]) -> dict[str, Unit]:
        """A budget is solved at LoRA's price, so that r is LoRA's: at its own, r of all would be one less.

        An r that is set itself costs what it costs, one more each.
        """
        own = 0 if self.r is None else 1
        return {name: Unit(sum(layer_shape(layer)) + own, noun="ranks") for name, layer in layers.items()}

    def values(self, common: int, pattern: dict[str, int]) -> dict[str, Any]:
        """r: the smallest that a layer was given, since PEFT begins with one for all; target_r: the average left.

        Raises UserError where nothing could be cut.
        """
        r = min([common, *pattern.values()])
        if r < 2:
            raise UserError(
                f"method={self.name}: {r} singular value a layer, of which none can be cut; expected 2 or more; raise "
                "the budget, or set method.r"
            )
        return {"r": r, "target_r": min(max(1, round(self.target * r)), r - 1), **self.factor}

    def achieved(self, units: dict[str, Unit], counts: dict[str, int], values: dict[str, Any]) -> int:
        """The two vectors of r singular values in every layer that is tuned, and themselves."""
        return values["r"] * sum(self._whole_cost(units[name]) for name in counts)

    def coarseness(self, units: dict[str, Unit]) -> str:
        """PEFT's AdaLoRA begins with one r."""
        step = sum(self._whole_cost(unit) for unit in units.values())
        return f"PEFT's AdaLoRA begins with one r for all layers, and one more costs {step:,}"

    def _whole_cost(self, unit: Unit) -> int:
        return unit.cost + (self.r is None)

    def peft_config(self, model: nn.Module, resolved: ResolvedMethod) -> AdaLoraConfig:
        """The schedule is set by `begin`, which knows the steps."""
        values = resolved.values
        return AdaLoraConfig(
            init_r=values["r"],
            target_r=values["target_r"],
            lora_alpha=cast(int, self.alpha_of(values["r"])),
            lora_dropout=self.dropout,
            fan_in_fan_out=all(isinstance(model.get_submodule(name), Conv1D) for name in values["target_modules"]),
            total_step=1,
            deltaT=self.delta_t,
            beta1=self.beta1,
            beta2=self.beta2,
            orth_reg_weight=self.orth_reg_weight,
        )

    def load(self, model: nn.Module, resolved: ResolvedMethod, folder: Path) -> PeftModel:
        """See `ReloadedMethod.load`: with all r singular values, as in training; those that were cut are zero."""
        wrapped, r = self.attach(model, resolved), resolved.values["r"]
        saved = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
        for name, tensor in saved.items():
            # (d_out, r) against (r, d_in) and (r, 1).
            if name.endswith(".lora_B"):
                saved[name] = functional.pad(tensor, (0, r - tensor.shape[1]))
            elif name.endswith((".lora_A", ".lora_E")):
                saved[name] = functional.pad(tensor, (0, 0, 0, r - tensor.shape[0]))
        set_peft_model_state_dict(wrapped, saved)
        return wrapped

    def begin(self, model: Any, optimizer: Any, step: int, total: int) -> None:
        """Set the schedule, and take up what an earlier process has measured."""
        allocator, config = model.base_model.rankallocator, allocator_config(model)
        config.total_step = total
        config.tinit, config.tfinal = int(self.tinit * total), int(self.tfinal * total)
        held = optimizer.state.get(_STATE, {})
        for name in _AVERAGES:
            setattr(allocator, name, {key: value.clone() for key, value in held.get(name, {}).items()})
        # The last product itself is written before it is read.
        allocator.ipt = {name: torch.zeros_like(value) for name, value in allocator.exp_avg_ipt.items()}
        if held.get(_KEPT):
            config.rank_pattern = held[_KEPT]

    def after_step(self, model: Any, optimizer: Any, step: int, total: int) -> None:
        """Cut, as PEFT has it. At step 0 it measures and cuts nothing."""
        allocator, config = model.base_model.rankallocator, allocator_config(model)
        model.base_model.update_and_allocate(step)
        held: dict[str, Any] = {name: getattr(allocator, name) for name in _AVERAGES}
        optimizer.state[_STATE] = held | ({_KEPT: config.rank_pattern} if config.rank_pattern else {})


def allocator_config(model: Any) -> AdaLoraConfig:
    """The configuration that the adapter's rank allocator reads."""
    return model.base_model.rankallocator.peft_config


METHOD: type[Method] = AdaLora
