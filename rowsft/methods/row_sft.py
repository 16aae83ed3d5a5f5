"""Row-SFT as a method of the suite: solve the budget, score, choose, attach the tuner."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn

from rowsft.errors import UserError
from rowsft.importance import Context, metric
from rowsft.methods.base import Knobs, PeftMethod, counts_for
from rowsft.progress import bar
from rowsft.selection.allocation import fit_pools, pool_units, share_of, steps_from, steps_of
from rowsft.selection.budget import Budget
from rowsft.selection.budget_met import check_met
from rowsft.selection.channel import ATTENTION, SCOPES
from rowsft.selection.choose import CHANNELS, choose, choose_globally, pools_for, row_price
from rowsft.selection.groups import Pool, Scores, layer_counts, parameters
from rowsft.selection.targets import Targets, eligible_layers, head_names, layer_shape
from rowsft.tuner import RowSFTConfig
from rowsft.tuner.attach import score_pools, with_choice

AXES = ("out", "in")
# What is trained is kept in 32 bit, and so are AdamW's two averages.
_BYTES_OF_A_PARAMETER = 12


@dataclass
class RowSFT(PeftMethod):
    """Train the most important rows (columns, coupled units). The keys are explained in conf/method/row_sft.yaml."""

    name: str = "row_sft"
    rows: int | None = None
    ratio: float | None = None
    channel: str = "out"
    attention: str = "linear"
    scope: str | None = None
    importance: str = "taylor"
    train_bias: bool = True
    dropout: float = 0.0
    recompute_inputs: bool = True
    seed: int = 0
    group_bytes: int | None = None
    draws: int = 256

    sizes: ClassVar[tuple[str, ...]] = ("rows", "ratio")
    native: ClassVar[tuple[str, ...]] = ("rows", "ratio")

    def __post_init__(self):
        for setting, known in (("channel", CHANNELS), ("attention", ATTENTION), ("scope", (None, *SCOPES))):
            if getattr(self, setting) not in known:
                names = ", ".join(name for name in known if name)
                raise UserError(f"method.{setting}={getattr(self, setting)}: unknown; use one of {names}")
        self.needs_calibration = metric(self.importance).needs_data

    def solve(self, budget: Budget, model: nn.Module, targets: Targets) -> Knobs:
        """See `Method.solve`. With scope global, sizes and `achieved` are those of an even choice until `select`."""
        layers = eligible_layers(model, targets)
        pools = pools_for(model, layers, self.channel, self.attention)
        units = pool_units(pools, layers, self.train_bias)
        dial = self.own_size() or budget.dial()
        if dial.kind == "ratio":
            steps, asked = share_of(pools, layers, dial.value, self.train_bias)
        else:
            counts, asked = counts_for(units, dial, self.native, budget.clip, model, targets, fit_pools)
            steps = steps_of(pools, counts)
        sizes = layer_counts(pools, steps)
        self.check_something(sizes, dial)
        scope = self.scope or budget.scope
        values = {"channel": self.channel, "attention": self.attention, "scope": scope}
        values |= {"importance": self.importance, "train_bias": self.train_bias}
        if scope == "global":
            in_rows = dial.kind in self.native
            values["limit"] = {"rows": row_price(pools)(steps)} if in_rows else {"parameters": asked}
            tuned = {name for pool in pools for name in pool.layers}
        else:
            tuned = set(sizes)
        values |= _patterns(sizes)
        values["target_modules"] = [name for name in layers if name in tuned]
        values["head_modules"] = head_names(model, targets.head_modules)
        achieved = parameters(layers, sizes, self.train_bias)
        if scope != "global":
            check_met(self.name, dial.source, asked, achieved, self.coarseness(units))
        return Knobs(values, asked, achieved, dial.source)

    def select(self, model: nn.Module, knobs: Knobs, calibration: Sequence[dict]) -> Knobs:
        """Score the target layers and choose in them; the model is left exactly as it was."""
        pools, layers = self._pools(model, knobs)
        return self._chosen(knobs, pools, layers, self._scored(pools, layers, model, knobs, calibration))

    def scores(
        self,
        model: nn.Module,
        knobs: Knobs,
        calibration: Sequence[dict],
        progress: Callable[..., Iterable] | None = None,
    ) -> Scores:
        """Scores of the target layers along the axes that the channel needs; `progress` as in `rowsft.score`."""
        return self._scored(*self._pools(model, knobs), model, knobs, calibration, progress)

    def _scored(
        self,
        pools: list[Pool],
        layers: dict[str, nn.Module],
        model: nn.Module,
        knobs: Knobs,
        calibration: Sequence[dict],
        progress: Callable[..., Iterable] | None = None,
    ) -> Scores:
        progress = progress or bar(f"scoring {self.importance}")
        step_bytes = _BYTES_OF_A_PARAMETER * (knobs.achieved or 0)
        context = Context(model, calibration, self.seed, self.group_bytes, self.draws, progress, step_bytes)
        return score_pools(pools, layers, self.importance, context)

    def assume(self, model: nn.Module, knobs: Knobs) -> dict[str, Knobs]:
        """See `Method.assume`: with scope global an even choice, the last layers first, the costliest layers first."""
        values = knobs.values
        pools, layers = self._pools(model, knobs)
        sizes = {name: layer_shape(layer) for name, layer in layers.items()}
        # Where all score alike, the pool that comes first is chosen first.
        alike = {axis: {name: torch.ones(size[i]) for name, size in sizes.items()} for i, axis in enumerate(AXES)}
        even = replace(knobs, values={**values, "scope": "layer"})
        found = {"": self._chosen(even, pools, layers, alike)}
        if values["scope"] == "global":
            costly = sorted(pools, key=lambda pool: -parameters(layers, layer_counts([pool], [1]), self.train_bias))
            found = {"even": found[""]}
            found["last layers"] = self._chosen(knobs, pools[::-1], layers, alike)
            found["costliest layers"] = self._chosen(knobs, costly, layers, alike)
        return found

    def _pools(self, model: nn.Module, knobs: Knobs) -> tuple[list[Pool], dict[str, nn.Module]]:
        layers = {name: model.get_submodule(name) for name in knobs.values["target_modules"]}
        return pools_for(model, layers, self.channel, self.attention), layers

    def _chosen(self, knobs: Knobs, pools: Sequence[Pool], layers: dict[str, nn.Module], scores: Scores) -> Knobs:
        values = knobs.values
        if values["scope"] == "layer":
            steps = steps_from(pools, values["rows_pattern"], values["columns_pattern"])
            return replace(knobs, chosen=choose(pools, layers, scores, steps))

        def price_in_parameters(steps):
            return parameters(layers, layer_counts(pools, steps), self.train_bias)

        [(unit, limit)] = values["limit"].items()
        price = row_price(pools) if unit == "rows" else price_in_parameters
        chosen = choose_globally(pools, layers, scores, limit, price)
        chosen = {name: choice for name, choice in chosen.items() if len(choice.rows) or len(choice.columns)}
        sizes = {name: (len(choice.rows), len(choice.columns)) for name, choice in chosen.items()}
        values = {**values, **_patterns(sizes), "target_modules": list(chosen)}
        achieved = parameters(layers, sizes, self.train_bias)
        check_met(self.name, knobs.source, knobs.asked, achieved, "rows are chosen whole, over all layers")
        return replace(knobs, values=values, achieved=achieved, chosen=chosen)

    def peft_config(self, model: nn.Module, knobs: Knobs) -> RowSFTConfig:
        """The tuner's configuration with what was chosen."""
        config = RowSFTConfig(
            channel=self.channel,
            attention=self.attention,
            scope=knobs.values["scope"],
            importance=self.importance,
            train_bias=self.train_bias,
            dropout=self.dropout,
            recompute_inputs=self.recompute_inputs,
            seed=self.seed,
        )
        return with_choice(config, knobs.chosen)


def _patterns(sizes: dict[str, tuple[int, int]]) -> dict:
    """The sizes as knobs: layer name -> rows, layer name -> columns, those without left out."""
    return {
        "rows_pattern": {name: rows for name, (rows, _) in sizes.items() if rows},
        "columns_pattern": {name: columns for name, (_, columns) in sizes.items() if columns},
    }


METHOD = RowSFT
