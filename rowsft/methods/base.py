"""What a method is to the rest of the suite, and what methods built on PEFT share."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import ClassVar, Protocol, get_type_hints

from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from rowsft.config import typed
from rowsft.errors import UserError, shortened
from rowsft.selection.budget import Budget, BudgetSpec, Unit, check_spec, fit, proportional, row_units, uniform
from rowsft.selection.budget_met import check_met
from rowsft.selection.ids import Chosen
from rowsft.selection.targets import Targets, eligible_layers, head_names


@dataclass(frozen=True)
class ResolvedMethod:
    """A method's settings once the budget is solved.

    values: what was settled, JSON-able. asked, achieved: trainable parameters without the task head (None: no budget
    applies). source: the setting that decided. Not serialised: steps, how many units each unit group takes, and chosen,
    full layer name -> its rows and columns.
    """

    values: dict
    asked: int | None = None
    achieved: int | None = None
    source: str = "not applicable"
    steps: tuple[int, ...] = ()
    chosen: dict[str, Chosen] | None = None


class Method(Protocol):
    """One way to tune a model. The runner never asks which one it holds."""

    name: str
    trains: bool
    needs_calibration: bool
    #: Whether what is trained is the model itself, and saved as a checkpoint of its own.
    saves_checkpoint: bool

    def solve(self, budget: Budget, model: nn.Module, targets: Targets) -> ResolvedMethod:
        """Turn the budget into sizes. Reads shapes only: a model on the meta device will do. Raises UserError."""

    def select(self, model: nn.Module, resolved: ResolvedMethod, calibration: Sequence[dict]) -> ResolvedMethod:
        """Settle what needs scores on training batches (none unless needs_calibration). The model is left as it was."""

    def selection_bounds(self, model: nn.Module, resolved: ResolvedMethod) -> dict[str, ResolvedMethod]:
        """What `select` could come to, without scores or weights, for a plan: name of each extreme -> sizes."""

    def attach(self, model: nn.Module, resolved: ResolvedMethod) -> nn.Module:
        """Freeze, wrap, and make the task head trainable as it is. The result computes what `model` computed."""

    def trainable(self, model: nn.Module) -> dict[str, int]:
        """Counts of trainable parameters of an attached model: adapter, head, total."""

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write what was trained as safetensors under `folder`, which is created."""

    def merge(self, model: nn.Module) -> nn.Module:
        """The plain model with what was trained built in; `model` is used up."""


def method_class(name: str) -> type:
    """The class of the method called `name`: row_sft or a module of `rowsft.baselines`.

    Raises UserError with the names.
    """
    names = sorted(["row_sft", *(module.name for module in iter_modules(import_module("rowsft.baselines").__path__))])
    if name not in names:
        raise UserError(f"method={name}: unknown method; use one of {', '.join(names)}")
    return import_module("rowsft.methods.row_sft" if name == "row_sft" else f"rowsft.baselines.{name}").METHOD


def like_parameters(like: Mapping, source: str, clip: bool, model: nn.Module, targets: Targets) -> int:
    """Trainable parameters of another method's setting, {method: lora, r: 8}, by that method's own counting.

    Raises UserError for an unknown method or setting, and for a setting without a size.
    """
    settings = dict(like)
    chosen = method_class(settings.pop("method"))
    hints = get_type_hints(chosen)
    known = [item.name for item in fields(chosen) if item.init and item.name != "name"]
    for key in settings:
        if key not in known:
            raise UserError(f"{source}: {key} is no setting of {chosen.name}; use some of {', '.join(known)}")
        typed.check(f"{source}: {key}", settings[key], hints[key], f"conf/method/{chosen.name}.yaml")
    if chosen.sizes and all(settings.get(size) is None for size in chosen.sizes):
        raise UserError(f"{source}: no size is given; add {' or '.join(chosen.sizes)}")
    return chosen(**settings).solve(Budget(clip=clip), model, targets).achieved


def counts_for(
    units: dict[str, Unit],
    spec: BudgetSpec,
    native: Sequence[str],
    clip: bool,
    model: nn.Module,
    targets: Targets,
    fit: Callable[..., dict[str, int]] = fit,
) -> tuple[dict[str, int], int]:
    """Solve a budget for a method: (name of each of `units` -> count, parameters asked).

    `native` are the budget keys that set the method's counts directly; any other becomes a number of parameters first,
    rows and ratio by what row-SFT would train, biases along. fit: spends such a number, as
    `rowsft.selection.budget.fit` does.
    """
    if spec.kind in native:
        return proportional(units, spec.value) if spec.kind == "ratio" else uniform(units, spec, clip)
    if spec.kind == "params":
        asked = spec.value
    elif spec.kind == "like":
        asked = like_parameters(spec.value, spec.source, clip, model, targets)
    else:
        rows = row_units(eligible_layers(model, targets))
        counts, _ = proportional(rows, spec.value) if spec.kind == "ratio" else uniform(rows, spec, clip)
        asked = sum(rows[name].total(count) for name, count in counts.items())
    return fit(units, asked, clip, spec.source), asked


class PeftMethod:
    """A method that wraps eligible layers through `peft.get_peft_model`; the head goes through modules_to_save.

    Subclasses are dataclasses with a `name`, one field for each of `sizes`, and the three methods below that raise
    here; `units` and `values` serve `solve` alone.
    """

    trains: ClassVar[bool] = True
    needs_calibration: bool = False
    saves_checkpoint: ClassVar[bool] = False
    sizes: ClassVar[tuple[str, ...]] = ()
    native: ClassVar[tuple[str, ...]] = ()

    def units(self, layers: dict[str, nn.Module]) -> dict[str, Unit]:
        """What one more row or rank costs in each layer."""
        raise NotImplementedError

    def values(self, common: int, pattern: dict[str, int]) -> dict:
        """The solved sizes as resolved: `common` in every target layer but those in `pattern`."""
        raise NotImplementedError

    def peft_config(self, model: nn.Module, resolved: ResolvedMethod) -> PeftConfig:
        """The adapter's configuration; targets and head are filled in by `attach`."""
        raise NotImplementedError

    def own_size(self) -> BudgetSpec | None:
        """The method's own size, which wins over the budget. Raises UserError for two of them or a wrong value."""
        given = [size for size in self.sizes if getattr(self, size) is not None]
        if len(given) > 1:
            raise UserError(f"{' and '.join(f'method.{size}' for size in given)} are both set; expected one")
        if not given:
            return None
        spec = BudgetSpec(given[0], getattr(self, given[0]), f"method.{given[0]}")
        check_spec(spec)
        return spec

    def solve(self, budget: Budget, model: nn.Module, targets: Targets) -> ResolvedMethod:
        """See `Method.solve`."""
        units = self.units(eligible_layers(model, targets))
        spec = self.own_size() or budget.spec()
        counts, asked = counts_for(units, spec, self.native, budget.clip, model, targets)
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

    def achieved(self, units: dict[str, Unit], counts: dict[str, int], values: dict) -> int:
        """Trainable parameters, the head left out, of the counts of layers as `values` makes them."""
        return sum(units[name].total(count) for name, count in counts.items())

    def coarseness(self, units: dict[str, Unit]) -> str:
        """What keeps the method from meeting a budget exactly."""
        cheapest = min(unit.cost for unit in units.values())
        return f"{next(iter(units.values())).noun} cost {cheapest:,} or more each"

    def check_something(self, tuned: Mapping, spec: BudgetSpec) -> None:
        """Raise UserError where the budget leaves no layer to tune."""
        if not tuned:
            raise UserError(
                f"{spec.source} leaves {self.name} nothing to train; raise it, or use method=head or method=none"
            )

    def select(self, model: nn.Module, resolved: ResolvedMethod, calibration: Sequence[dict]) -> ResolvedMethod:
        """See `Method.select`: nothing needs scores."""
        return resolved

    def selection_bounds(self, model: nn.Module, resolved: ResolvedMethod) -> dict[str, ResolvedMethod]:
        """See `Method.selection_bounds`: there is one way."""
        return {"": resolved}

    def attach(self, model: nn.Module, resolved: ResolvedMethod) -> PeftModel:
        """See `Method.attach`.

        Raises UserError where PEFT refuses a layer (LoRA that of a state-space model), and where it would train other
        modules than the head named.
        """
        config = self.peft_config(model, resolved)
        config.target_modules = set(resolved.values["target_modules"])
        config.modules_to_save = _parts_with_parameters(model, resolved.values["head_modules"]) or None
        head = head_parameters(model, resolved.values["head_modules"])
        try:
            wrapped = get_peft_model(model, config)
        except UserError:
            raise
        except ValueError as error:
            raise UserError(
                f"method={self.name}: PEFT cannot adapt these layers ({shortened(error, 240)}); name others in "
                "model.target_modules, or leave some out in model.exclude_modules"
            ) from error
        layers = {
            name for name, module in wrapped.base_model.model.named_modules() if isinstance(module, BaseTunerLayer)
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

    def trainable(self, model: nn.Module) -> dict[str, int]:
        """See `Method.trainable`."""
        return trainable_counts(model, lambda name: ".modules_to_save." in name)

    def save(self, model: PeftModel, folder: Path) -> None:
        """See `Method.save`: PEFT's own adapter format, the same bytes whatever Python hashes to."""
        for config in model.peft_config.values():
            in_order(config)
        model.save_pretrained(folder)

    def merge(self, model: PeftModel) -> nn.Module:
        """See `Method.merge`."""
        return model.merge_and_unload()


class PlainMethod:
    """A method that trains parameters of the model itself, or none: nothing is sized, selected or merged."""

    trains: ClassVar[bool] = True
    needs_calibration: ClassVar[bool] = False
    saves_checkpoint: ClassVar[bool] = False
    sizes: ClassVar[tuple[str, ...]] = ()

    def select(self, model: nn.Module, resolved: ResolvedMethod, calibration: Sequence[dict]) -> ResolvedMethod:
        """See `Method.select`: nothing to select."""
        return resolved

    def selection_bounds(self, model: nn.Module, resolved: ResolvedMethod) -> dict[str, ResolvedMethod]:
        """See `Method.selection_bounds`: there is one way."""
        return {"": resolved}

    def merge(self, model: nn.Module) -> nn.Module:
        """See `Method.merge`: the model itself."""
        return model


def _parts_with_parameters(model: nn.Module, names: Sequence[str]) -> list[str]:
    """The modules inside `names` with parameters of their own: PEFT cannot merge a wrapped module of several parts."""
    return [
        f"{name}.{inner}".rstrip(".")
        for name in names
        for inner, module in model.get_submodule(name).named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ]


def in_order(config: PeftConfig) -> PeftConfig:
    """`config` with lists for its sets of names, which PEFT would write in an order that changes from run to run."""
    for name, value in vars(config).items():
        if isinstance(value, set):
            setattr(config, name, sorted(value))
    return config


def head_parameters(model: nn.Module, head_modules: Sequence[str]) -> int:
    """Parameters of the head modules of a plain model; each counts once."""
    return sum(p.numel() for p in {p for name in head_modules for p in model.get_submodule(name).parameters()})


def trainable_counts(model: nn.Module, is_head: Callable[[str], bool]) -> dict[str, int]:
    """Trainable parameters split by `is_head(parameter name)`: adapter, head, total."""
    counts = {"adapter": 0, "head": 0}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            counts["head" if is_head(name) else "adapter"] += parameter.numel()
    return {**counts, "total": counts["adapter"] + counts["head"]}
