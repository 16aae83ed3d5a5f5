"""What methods share that wrap layers through PEFT."""

import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, TypeVar, cast

from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers.pytorch_utils import Conv1D

from rowsft.errors import UserError, shortened
from rowsft.layers.matrix import LinearLayer
from rowsft.layers.packing import mark, unpack
from rowsft.layers.quantised import is_packed, is_quantised, is_torchaos, quantised_layers
from rowsft.method_info import MethodInfo, info_of
from rowsft.methods.base import Method, ResolvedMethod
from rowsft.methods.plain_method import head_parameters, trainable_counts
from rowsft.methods.sizes import counts_for
from rowsft.selection.budget import Budget, BudgetSpec, Unit, check_spec, fit
from rowsft.selection.budget_met import check_met
from rowsft.selection.targets import Targets, eligible_layers, head_names

AnyModule = TypeVar("AnyModule", bound=nn.Module)

# PEFT has one class, ValueError, for a layer that it cannot adapt and for a fault in how it was called.
_REFUSED_LAYER = re.compile(r"is not supported|incompatible with .* models")


class PeftMethod(Method):
    """A method that wraps eligible layers through `peft.get_peft_model`; the head goes through modules_to_save.

    Subclasses are dataclasses with a `name` and one field for each of `info.sizes`. What their `solve` returns has the
    names of the target_modules and the head_modules in `values`.
    """

    info: ClassVar[MethodInfo]
    trains: ClassVar[bool] = True
    saves_checkpoint: ClassVar[bool] = False
    #: Whether PEFT puts it on layers that torchao has packed.
    adapts_torchao: ClassVar[bool] = False
    #: What `rowsft plan --compare` plans of it: name of the variant -> overrides.
    compared: ClassVar[dict[str, list[str]]] = {}

    @abstractmethod
    def peft_config(self, model: nn.Module, resolved: ResolvedMethod) -> PeftConfig:
        """Return the adapter's configuration; targets and head are filled in by `attach`."""

    @property
    def sizes(self) -> tuple[str, ...]:
        """The method's own settings of its size."""
        return info_of(self).sizes

    def own_size(self) -> BudgetSpec | None:
        """Return the method's own size, which wins over the budget.

        Raises UserError for two of them or a wrong value.
        """
        given = [size for size in self.sizes if getattr(self, size) is not None]
        if len(given) > 1:
            raise UserError(f"{' and '.join(f'method.{size}' for size in given)} are both set; expected one")
        if not given:
            return None
        spec = BudgetSpec(given[0], getattr(self, given[0]), f"method.{given[0]}")
        check_spec(spec)
        return spec

    def coarseness(self, units: dict[str, Unit]) -> str:
        """Return what keeps the method from meeting a budget exactly."""
        cheapest = min(unit.cost for unit in units.values())
        return f"{next(iter(units.values())).noun} cost {cheapest:,} or more each"

    def check_something(self, tuned: Mapping, spec: BudgetSpec) -> None:
        """Raise UserError where the budget leaves no layer to tune."""
        if not tuned:
            raise UserError(
                f"{spec.source} leaves {self.name} nothing to train; raise it, or use method=head or method=none"
            )

    def attach(self, model: nn.Module, resolved: ResolvedMethod) -> PeftModel:
        """See `Method.attach`.

        Raises UserError where PEFT refuses a layer (LoRA that of a state-space model), and where it would train other
        modules than the head named.
        """
        return self.wrapped(model, resolved, self.peft_config(model, resolved))

    def wrapped(self, model: nn.Module, resolved: ResolvedMethod, peft_config: PeftConfig) -> PeftModel:
        """Wrap the layers of `resolved` as `peft_config` says; targets and head are filled in. Raises as `attach`."""
        packed = (model.get_submodule(name) for name in resolved.values["target_modules"])
        if not self.adapts_torchao and any(is_torchaos(layer.weight) for layer in packed if is_quantised(layer)):
            raise UserError(
                f"method={self.name}: PEFT cannot put it on a base in 8 bits; set model.quantize=nf4 or null, or use "
                "method=lora"
            )
        # PeftConfig itself lacks the two fields, which every tuner's configuration has.
        config: Any = peft_config
        config.target_modules = set(resolved.values["target_modules"])
        config.modules_to_save = _parts_with_parameters(model, resolved.values["head_modules"]) or None
        head = head_parameters(model, resolved.values["head_modules"])
        try:
            wrapped = get_peft_model(model, config)
        except ValueError as error:
            if isinstance(error, UserError) or not _REFUSED_LAYER.search(str(error)):
                raise
            raise UserError(
                f"method={self.name}: PEFT cannot adapt these layers ({shortened(error, 240)}); name others in "
                "model.target_modules, or leave some out in model.exclude_modules"
            ) from error
        layers = {
            name for name, module in wrapped.get_base_model().named_modules() if isinstance(module, BaseTunerLayer)
        }
        if layers != set(resolved.values["target_modules"]):
            raise RuntimeError(
                f"PEFT wrapped other layers than asked: {sorted(layers ^ set(resolved.values['target_modules']))}"
            )
        if self.trainable(wrapped)["head"] != head:
            raise UserError(
                f"head_modules={resolved.values['head_modules']}: PEFT matches names by their ending and would train "
                "further modules too; name those as well"
            )
        return wrapped

    def load(self, model: nn.Module, resolved: ResolvedMethod, folder: Path) -> PeftModel:
        """See `ReloadedMethod.load`."""
        return PeftModel.from_pretrained(cast(Any, model), str(folder), is_trainable=True)

    def trainable(self, model: nn.Module) -> dict[str, int]:
        """See `Method.trainable`."""
        return trainable_counts(model, lambda name: ".modules_to_save." in name)

    def save(self, model: PeftModel, folder: Path) -> None:
        """See `Method.save`: PEFT's own adapter format, the same bytes whatever Python hashes to."""
        for config in model.peft_config.values():
            in_order(config)
        model.save_pretrained(str(folder))

    def merge(self, model: PeftModel) -> nn.Module:
        """See `Method.merge`: into what the weights of a quantised base stand for, as plain layers."""
        if not quantised_layers(model):
            return without_wrappers(model.merge_and_unload())
        # PEFT would quantise the merged weights again, and round the change away. Loaded anew it meets plain layers.
        with TemporaryDirectory(prefix="rowsft-merge-") as folder:
            self.save(model, Path(folder))
            # IA3 refuses to give a base of bitsandbytes back, too.
            mark(model.get_base_model(), None)
            base = unpack(model.unload())
            return without_wrappers(PeftModel.from_pretrained(cast(Any, base), folder).merge_and_unload())


class RankedMethod(PeftMethod):
    """A PEFT method whose size is one count in every layer, such as a rank; `units` and `values` serve `solve`."""

    @abstractmethod
    def units(self, layers: Mapping[str, LinearLayer]) -> dict[str, Unit]:
        """Return what one more rank costs in each layer."""

    @abstractmethod
    def values(self, common: int, pattern: dict[str, int]) -> dict[str, Any]:
        """Return the solved sizes as resolved: `common` in every target layer but those in `pattern`."""

    def fit(self, units: dict[str, Unit], params: int, clip: bool, source: str) -> dict[str, int]:
        """Return the counts of layers that `params` parameters buy; see `rowsft.selection.budget.fit`."""
        return fit(units, params, clip, source)

    def achieved(self, units: dict[str, Unit], counts: dict[str, int], values: dict[str, Any]) -> int:
        """Return the trainable parameters, the head left out, of the counts of layers as `values` makes them."""
        return sum(units[name].total(count) for name, count in counts.items())

    def solve(self, budget: Budget, model: nn.Module, targets: Targets) -> ResolvedMethod:
        """See `Method.solve`."""
        units = self.units(eligible_layers(model, targets))
        spec = self.own_size() or budget.spec()
        counts, asked = counts_for(units, spec, self.sizes, budget.clip, model, targets, self.fit)
        tuned = {name: count for name, count in counts.items() if count}
        self.check_something(tuned, spec)
        common = Counter(tuned.values()).most_common(1)[0][0]
        values = {
            **self.values(common, {name: count for name, count in tuned.items() if count != common}),
            "target_modules": list(tuned),
            "head_modules": head_names(model, targets.head_modules),
        }
        achieved = self.achieved(units, tuned, values)
        check_met(self.name, spec.source, asked, achieved, self.coarseness(units))
        return ResolvedMethod(values, asked, achieved, spec.source)


class OneSizeMethod(RankedMethod):
    """A ranked method that has one size for all layers in PEFT: all get the least that a layer was given."""

    #: What PEFT calls the method, in messages.
    tuner: ClassVar[str]

    def values(self, common: int, pattern: dict[str, int]) -> dict[str, Any]:
        """r: the smallest that a layer was given."""
        return {"r": min([common, *pattern.values()])}

    def achieved(self, units: dict[str, Unit], counts: dict[str, int], values: dict[str, Any]) -> int:
        """The parameters of one r in every layer that is tuned."""
        return sum(units[name].total(values["r"]) for name in counts)

    def coarseness(self, units: dict[str, Unit]) -> str:
        """There is one r."""
        step = sum(unit.cost for unit in units.values())
        return f"PEFT's {self.tuner} has one r for all layers, and one more costs {step:,}"


def check_dropout(share: float) -> None:
    """Raise UserError for a dropout that is no share of what is dropped from."""
    if not 0 <= share < 1:
        raise UserError(f"method.dropout={share}: expected a share from 0 to below 1")


def check_linear(method: str, tuner: str, layers: Mapping[str, LinearLayer]) -> None:
    """Raise UserError for a Conv1D, where PEFT's `tuner` knows nn.Linear only."""
    for name, layer in layers.items():
        if isinstance(layer, Conv1D):
            raise UserError(
                f"method={method}: layer {name} is a Conv1D, and PEFT's {tuner} knows nn.Linear only; use another "
                "method, or exclude it with model.exclude_modules"
            )


def check_not_packed(method: str, tuner: str, layers: Mapping[str, LinearLayer]) -> None:
    """Raise UserError for a quantised layer, where PEFT's `tuner` reads or writes the weight itself."""
    for name, layer in layers.items():
        if is_packed(layer.weight):
            raise UserError(
                f"method={method}: layer {name} is quantised, and PEFT's {tuner} needs its weight as numbers; set "
                "model.quantize=null, or use another method"
            )


def in_order(config: PeftConfig) -> PeftConfig:
    """Put lists in the place of a configuration's sets of names, which PEFT would write in an order that changes."""
    for name, value in vars(config).items():
        if isinstance(value, set):
            setattr(config, name, sorted(value))
    return config


def without_wrappers(model: AnyModule) -> AnyModule:
    """Put trained heads in the place of their wrappers, which PEFT leaves in a model when it unloads LN-tuning."""
    for name, module in list(model.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):
            model.set_submodule(name, module.unload_and_optionally_merge_module(True, False, None))
    return model


def transposed(model: nn.Module, names: Sequence[str]) -> bool:
    """Whether all of these layers are Conv1D, which PEFT is told by `fan_in_fan_out`."""
    return all(isinstance(model.get_submodule(name), Conv1D) for name in names)


def _parts_with_parameters(model: nn.Module, names: Sequence[str]) -> list[str]:
    """The modules inside `names` with parameters of their own: PEFT cannot merge a wrapped module of several parts."""
    return [
        f"{name}.{inner}".rstrip(".")
        for name in names
        for inner, module in model.get_submodule(name).named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ]
