"""Row-SFT as a method of the suite: solve the budget, score, choose, attach the tuner."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from peft import PeftModel
from torch import nn

from rowsft import renamed
from rowsft.errors import UserError
from rowsft.importance import Context, metric
from rowsft.layers.matrix import LinearLayer, layer_shape
from rowsft.layers.quantised import is_quantised
from rowsft.method_info import MethodInfo
from rowsft.methods.base import CalibratedMethod, ResolvedMethod
from rowsft.methods.peft_method import PeftMethod
from rowsft.methods.sizes import counts_for
from rowsft.models.changed import ChangedWeights
from rowsft.models.originals import originals_of
from rowsft.progress import bar
from rowsft.selection.allocation import fit_groups, group_units, share_of, steps_of
from rowsft.selection.budget import Budget
from rowsft.selection.budget_met import check_met
from rowsft.selection.channel import ATTENTION, AXES, CHANNELS, SCOPES
from rowsft.selection.choose import choose, choose_globally, row_price, unit_groups_for
from rowsft.selection.groups import Scores, UnitGroup, layer_counts, parameters
from rowsft.selection.targets import Targets, eligible_layers, head_names
from rowsft.tuner import RowSFTConfig, RowSFTModel
from rowsft.tuner.attach import score_groups, with_choice
from rowsft.tuner.quantised_start import STARTS, adapted_layers, add_residuals

# What is trained is kept in 32 bit, and so are AdamW's two averages.
_BYTES_OF_A_PARAMETER = 12


@dataclass
class RowSFT(PeftMethod):
    """Train the most important rows (columns, coupled units). The keys are explained in conf/method/row_sft.yaml."""

    info: ClassVar[MethodInfo] = MethodInfo(
        "row_sft", "row-SFT", 20, "#D55E00", "o", sizes=("rows", "ratio"), adapter_prefix=RowSFTModel.prefix
    )
    compared: ClassVar[dict[str, list[str]]] = {"rows": [], "columns": ["method.channel=columns"]}

    adapts_torchao: ClassVar[bool] = True

    name: str = info.name
    rows: int | None = None
    ratio: float | None = None
    channel: str = "rows"
    attention: str = "linear"
    scope: str | None = None
    importance: str = "taylor"
    train_bias: bool = True
    dropout: float = 0.0
    recompute_inputs: bool = True
    quantised_start: str = "residual"
    seed: int = 0
    group_bytes: int | None = None
    changed: str | None = None

    def __post_init__(self) -> None:
        self.channel = renamed.channel(self.channel)
        choices = (("attention", ATTENTION), ("scope", (None, *SCOPES)), ("quantised_start", STARTS))
        for setting, known in (("channel", CHANNELS), *choices):
            if getattr(self, setting) not in known:
                names = ", ".join(name for name in known if name)
                raise UserError(f"method.{setting}={getattr(self, setting)}: unknown; use one of {names}")
        scoring = metric(self.importance)
        self.needs_calibration = scoring.needs_data
        if (scoring.needs == "changed weights") != (self.changed is not None):
            raise UserError(
                f"method.importance={self.importance} reads the weights of no second checkpoint; leave out "
                f"method.changed={self.changed}, or use method.importance=change"
                if self.changed is not None
                else f"method.importance={self.importance} needs method.changed: the folder of a whole checkpoint that "
                "a full fine-tuning of this model has left, or the id of a finished run of method=full"
            )

    def solve(self, budget: Budget, model: nn.Module, targets: Targets) -> ResolvedMethod:
        """See `Method.solve`. With scope global, sizes and `achieved` are those of an even choice until `select`."""
        layers = eligible_layers(model, targets)
        self._check_changed(model, layers)
        unit_groups = unit_groups_for(model, layers, self.channel, self.attention)
        units = group_units(unit_groups, layers, self.train_bias)
        spec = self.own_size() or budget.spec()
        if spec.kind == "ratio":
            steps, asked = share_of(unit_groups, layers, spec.value, self.train_bias)
        else:
            counts, asked = counts_for(units, spec, self.sizes, budget.clip, model, targets, fit_groups)
            steps = steps_of(unit_groups, counts)
        sizes = layer_counts(unit_groups, steps)
        self.check_something(sizes, spec)
        scope = self.scope or budget.scope
        values: dict[str, Any] = {"channel": self.channel, "attention": self.attention, "scope": scope}
        values |= {"importance": self.importance, "train_bias": self.train_bias}
        if scope == "global":
            in_rows = spec.kind in self.sizes
            values["limit"] = {"rows": row_price(unit_groups)(steps)} if in_rows else {"parameters": asked}
            tuned = {name for group in unit_groups for name in group.layers}
        else:
            tuned = set(sizes)
        if originals_of(model) is not None:
            values["quantised_start"] = self.quantised_start
        values |= _patterns(sizes)
        values["target_modules"] = [name for name in layers if name in tuned]
        # `select` sees the groups of the target layers alone.
        taken = tuple(count for group, count in zip(unit_groups, steps, strict=True) if tuned.issuperset(group.layers))
        values["head_modules"] = head_names(model, targets.head_modules)
        achieved = parameters(layers, sizes, self.train_bias)
        if scope != "global":
            check_met(self.name, spec.source, asked, achieved, self.coarseness(units))
        return ResolvedMethod(values, asked, achieved, spec.source, taken)

    def select(self, model: nn.Module, resolved: ResolvedMethod, calibration: Sequence[dict]) -> ResolvedMethod:
        """Score the target layers and choose in them; the model is left exactly as it was."""
        unit_groups, layers = self._unit_groups(model, resolved)
        return self._chosen(
            resolved, unit_groups, layers, self._scored(unit_groups, layers, model, resolved, calibration)
        )

    def choose(self, model: nn.Module, resolved: ResolvedMethod, scores: Scores) -> ResolvedMethod:
        """Choose by `scores` of the target layers, as `select` does by those of the method's own metric.

        scores: layer name -> axis -> its scores, along the axes of the channel. Reads shapes only: a model on the meta
        device will do.
        """
        return self._chosen(resolved, *self._unit_groups(model, resolved), scores)

    def scores(
        self,
        model: nn.Module,
        resolved: ResolvedMethod,
        calibration: Sequence[dict],
        progress: Callable[..., Iterable] | None = None,
    ) -> Scores:
        """Return the scores of the target layers along the axes of the channel; `progress` as in `rowsft.score`."""
        return self._scored(*self._unit_groups(model, resolved), model, resolved, calibration, progress)

    def _scored(
        self,
        unit_groups: list[UnitGroup],
        layers: Mapping[str, LinearLayer],
        model: nn.Module,
        resolved: ResolvedMethod,
        calibration: Sequence[dict],
        progress: Callable[..., Iterable] | None = None,
    ) -> Scores:
        progress = progress or bar(f"scoring {self.importance}")
        step_bytes = _BYTES_OF_A_PARAMETER * (resolved.achieved or 0)
        changed = self._changed(model) if self.changed is not None else None
        context = Context(model, calibration, self.seed, self.group_bytes, progress, step_bytes, changed)
        return score_groups(unit_groups, layers, self.importance, context)

    def _changed(self, model: nn.Module) -> ChangedWeights:
        return ChangedWeights(str(self.changed), model, "method.changed")

    def _check_changed(self, model: nn.Module, layers: Mapping[str, LinearLayer]) -> None:
        """Raise UserError for a second checkpoint that is not of this model, and for a base to which none compares."""
        if self.changed is None:
            return
        if any(is_quantised(layer) for layer in layers.values()):
            raise UserError(
                f"method.importance={self.importance} compares weights, and this base's are quantised, which changes "
                "them all; set model.quantize=null, or use another metric"
            )
        self._changed(model).check(layers.items())

    def selection_bounds(self, model: nn.Module, resolved: ResolvedMethod) -> dict[str, ResolvedMethod]:
        """See `CalibratedMethod`: with scope global an even choice, the last layers, the costliest first."""
        values = resolved.values
        unit_groups, layers = self._unit_groups(model, resolved)
        # Where all score alike, the group that comes first is chosen first.
        alike: Scores = {
            name: {axis: torch.ones(size) for axis, size in zip(AXES, layer_shape(layer), strict=True)}
            for name, layer in layers.items()
        }
        even = self._chosen(replace(resolved, values={**values, "scope": "layer"}), unit_groups, layers, alike)
        if values["scope"] == "layer":
            return {"": even}
        costly = sorted(unit_groups, key=lambda group: -parameters(layers, layer_counts([group], [1]), self.train_bias))
        return {
            "even": even,
            "last layers": self._chosen(resolved, unit_groups[::-1], layers, alike),
            "costliest layers": self._chosen(resolved, costly, layers, alike),
        }

    def _unit_groups(
        self, model: nn.Module, resolved: ResolvedMethod
    ) -> tuple[list[UnitGroup], dict[str, LinearLayer]]:
        layers = {name: cast(LinearLayer, model.get_submodule(name)) for name in resolved.values["target_modules"]}
        return unit_groups_for(model, layers, self.channel, self.attention), layers

    def _chosen(
        self,
        resolved: ResolvedMethod,
        unit_groups: Sequence[UnitGroup],
        layers: Mapping[str, LinearLayer],
        scores: Scores,
    ) -> ResolvedMethod:
        values = resolved.values
        if values["scope"] == "layer":
            return replace(resolved, chosen=choose(unit_groups, layers, scores, resolved.steps))

        def price_in_parameters(steps: Sequence[int]) -> int:
            return parameters(layers, layer_counts(unit_groups, steps), self.train_bias)

        [(unit, limit)] = values["limit"].items()
        price = row_price(unit_groups) if unit == "rows" else price_in_parameters
        chosen = choose_globally(unit_groups, layers, scores, limit, price)
        chosen = {name: choice for name, choice in chosen.items() if len(choice.rows) or len(choice.columns)}
        sizes = {name: (len(choice.rows), len(choice.columns)) for name, choice in chosen.items()}
        values = {**values, **_patterns(sizes), "target_modules": list(chosen)}
        achieved = parameters(layers, sizes, self.train_bias)
        check_met(self.name, resolved.source, resolved.asked or 0, achieved, "rows are chosen whole, over all layers")
        return replace(resolved, values=values, achieved=achieved, chosen=chosen)

    def attach(self, model: nn.Module, resolved: ResolvedMethod) -> PeftModel:
        """See `Method.attach`: on a quantised base with the original rows and columns, unless they start at zero."""
        originals = originals_of(model)
        wrapped = super().attach(model, resolved)
        if originals is not None and self.quantised_start == "residual":
            bases = {name: layer.get_base_layer() for name, layer in adapted_layers(wrapped).items()}
            packed = {name: layer for name, layer in bases.items() if is_quantised(layer)}
            add_residuals(wrapped, originals.residuals(model, packed))
        return wrapped

    def peft_config(self, model: nn.Module, resolved: ResolvedMethod) -> RowSFTConfig:
        """Return the tuner's configuration with what was chosen."""
        assert resolved.chosen is not None, "`select` comes first"
        config = RowSFTConfig(
            channel=self.channel,
            attention=self.attention,
            scope=resolved.values["scope"],
            importance=self.importance,
            train_bias=self.train_bias,
            dropout=self.dropout,
            recompute_inputs=self.recompute_inputs,
            seed=self.seed,
        )
        if (originals := originals_of(model)) is not None:
            config.base_quantization, config.quantised_start = originals.kind, self.quantised_start
        return with_choice(config, resolved.chosen)


def _patterns(sizes: dict[str, tuple[int, int]]) -> dict:
    """Return the sizes as resolved: layer name -> rows, layer name -> columns, those without left out."""
    return {
        "rows_pattern": {name: rows for name, (rows, _) in sizes.items() if rows},
        "columns_pattern": {name: columns for name, (_, columns) in sizes.items() if columns},
    }


METHOD: type[CalibratedMethod] = RowSFT
