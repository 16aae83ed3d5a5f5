"""Row-SFT on a plain model with any importance metric, also those that need training batches."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence

from peft import PeftModel, get_peft_model
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn

from rowsft import renamed
from rowsft.errors import UserError
from rowsft.importance import Context, as_batches, score_layers
from rowsft.importance.registry import no_progress
from rowsft.layers.matrix import LinearLayer
from rowsft.selection.allocation import group_units, share_of, steps_of
from rowsft.selection.budget import BudgetSpec, uniform
from rowsft.selection.channel import AXES
from rowsft.selection.choose import choose, choose_globally, row_price, unit_groups_for
from rowsft.selection.groups import Scores, UnitGroup
from rowsft.selection.ids import Chosen
from rowsft.selection.targets import Targets, eligible_layers
from rowsft.tuner import RowSFTConfig


def score(
    model: nn.Module,
    importance: str,
    calibration: Iterable[Mapping] = (),
    target_modules: str | Sequence[str] = "all-linear",
    exclude_modules: str | Sequence[str] | None = None,
    layers_to_transform: int | Sequence[int] | None = None,
    head_modules: Sequence[str] = (),
    seed: int = 0,
    group_bytes: int | None = None,
    progress: Callable[..., Iterable] = no_progress,
    channel: str = "rows",
) -> Mapping[str, Tensor] | Scores:
    """Score the eligible layers of a plain (not PEFT-wrapped) model, which is left exactly as it was.

    importance: a metric's name, with its parameters, as in "zo_taylor(draws=64)". calibration: training batches (dicts
    of tensors that model.forward accepts, with labels) for metrics that need them; any iterable, gone through once. The
    next four say which layers, as in `rowsft.selection.targets.Targets`. seed: of metrics that draw. group_bytes: bytes
    of gradients and layer inputs held at a time; None keeps the peak under that of a training step that keeps its
    inputs, as LoRA's does. progress: wraps an iterable of batches, called with (items, total).

    Returns, in the model's order and on the CPU, for channel
    - "rows": full layer name -> scores of its rows, float32 (d_out,);
    - "columns": full layer name -> scores of its columns, float32 (d_in,);
    - "both": full layer name -> {"rows": the first, "columns": the second};
    - "neurons": name of the module that holds coupled units -> their scores, float64 (units,): relative to the average,
      see `rowsft.selection.groups.UnitGroup.unit_scores`.

    Raises UserError for an unknown metric or channel, missing batches, no eligible layer, a model whose coupled units
    are not known, and losses or scores that are not finite.
    """
    targets = Targets(target_modules, exclude_modules, layers_to_transform, head_modules)
    layers = eligible_layers(model, targets)
    channel = renamed.channel(channel)
    unit_groups = unit_groups_for(model, layers, channel, "linear")
    context = Context(model, as_batches(calibration), seed, group_bytes, progress)
    scores = score_groups(unit_groups, layers, importance, context)
    if channel == "neurons":
        return {group.name: group.unit_scores(scores, compared=True) for group in unit_groups}
    if channel == "both":
        return scores
    return {name: score for name, of_layer in scores.items() for score in of_layer.values()}


def attach(base: nn.Module, config: RowSFTConfig, calibration: Iterable[Mapping] | None = None) -> PeftModel:
    """Wrap `base` for row-SFT as `config` says: score, choose, `peft.get_peft_model`. Any metric works.

    Rows and columns given by `config.row_ids` and `config.column_ids` are taken as they are. `config` itself is not
    changed; the wrapped model's copy names the layers that train something and their sizes. calibration: see `score`.
    Raises UserError as `score` does, and for a size larger than a layer.
    """
    if config.row_ids is not None or config.column_ids is not None:
        return get_peft_model(base, copy.copy(config))
    targets = Targets(
        config.target_modules or _usual_targets(base),
        config.exclude_modules,
        config.layers_to_transform,
        config.modules_to_save or (),
        config.layers_pattern,
    )
    layers = eligible_layers(base, targets)
    chosen = plan_rows(base, layers, config, calibration)
    return get_peft_model(base, with_choice(config, chosen))


def plan_rows(
    model: nn.Module,
    layers: Mapping[str, LinearLayer],
    config: RowSFTConfig,
    calibration: Iterable[Mapping] | None = None,
) -> dict[str, Chosen]:
    """Return the rows and columns of each of `layers` that `config` chooses by its own scores; nothing is changed.

    model: the plain model, whose config tells its family and heads (for channel "neurons" and attention "grouped").
    layers: the layers to choose in, full name -> base layer, in the model's order. config: its size (rows, ratio,
    rows_pattern, columns_pattern), channel, importance, scope, attention and seed are read. calibration: training
    batches, for metrics that need them.

    Scope "global" keeps the total that the sizes add up to, and a layer whose size is 0 out. Returns layer name ->
    `Chosen` for all `layers`; one that stays frozen has no ids. Raises UserError for sizes that are missing or
    larger than a layer, and as `score` does.
    """
    unit_groups = unit_groups_for(model, layers, config.channel, config.attention)
    steps = _configured_steps(unit_groups, layers, config)
    if not any(steps):
        raise UserError("every target layer is left with nothing to train; raise rows, ratio or the patterns")
    # The layers of the others are not scored.
    unit_groups = [group for group, count in zip(unit_groups, steps, strict=True) if count]
    steps = [count for count in steps if count]
    scores = score_groups(unit_groups, layers, config.importance, Context(model, as_batches(calibration), config.seed))
    if config.scope == "global":
        price = row_price(unit_groups)
        return choose_globally(unit_groups, layers, scores, price(steps), price)
    return choose(unit_groups, layers, scores, steps)


def score_groups(
    unit_groups: Sequence[UnitGroup], layers: Mapping[str, LinearLayer], importance: str, context: Context
) -> Scores:
    """Return the scores of all layers of the groups along the axes that they need."""
    members = {name for group in unit_groups for name in group.layers}
    needed = {member.axis for group in unit_groups for member in group.members}
    axes = [axis for axis in AXES if axis in needed]
    return score_layers({n: layer for n, layer in layers.items() if n in members}, importance, context, axes)


def with_choice(config: RowSFTConfig, chosen: Mapping[str, Chosen]) -> RowSFTConfig:
    """Return a copy of `config` that targets the layers with a choice, by full name, with their ids and sizes."""
    settled = copy.copy(config)
    settled.row_ids = {name: choice.rows for name, choice in chosen.items() if len(choice.rows)}
    settled.column_ids = {name: choice.columns for name, choice in chosen.items() if len(choice.columns)}
    settled.rows_pattern = {name: len(ids) for name, ids in settled.row_ids.items()}
    settled.columns_pattern = {name: len(ids) for name, ids in settled.column_ids.items()}
    settled.rows = settled.ratio = None
    settled.target_modules = {*settled.row_ids, *settled.column_ids}
    settled.exclude_modules = settled.layers_to_transform = settled.layers_pattern = None
    return settled


def _configured_steps(
    unit_groups: Sequence[UnitGroup], layers: Mapping[str, LinearLayer], config: RowSFTConfig
) -> list[int]:
    """Steps of each group as the config's sizes and patterns say."""
    patterns = {"rows": config.rows_pattern, "columns": config.columns_pattern}
    if config.rows is not None:
        units, spec = group_units(unit_groups, layers, config.train_bias), BudgetSpec("rows", config.rows, "rows")
        apart = {name for pattern in patterns.values() for name in pattern or ()}
        counts, _ = uniform(units, spec, clip=True)
        uniform({n: unit for n, unit in units.items() if n not in apart}, spec, clip=False, instead="exclude it")
        steps = steps_of(unit_groups, counts)
    elif config.ratio is not None:
        steps, _ = share_of(unit_groups, layers, config.ratio, config.train_bias)
    elif any(pattern is not None for pattern in patterns.values()):
        steps = [0] * len(unit_groups)
    else:
        raise UserError("no size is set; give rows, ratio, rows_pattern, columns_pattern, or row_ids or column_ids")
    eligible = {name for group in unit_groups for name in group.layers}
    for axis, pattern in patterns.items():
        if unknown := sorted(set(pattern or ()) - eligible):
            raise UserError(
                f"{axis}_pattern names {unknown[0]}, which target_modules and attention={config.attention} do not "
                f"select in this model; use full layer names such as {min(eligible)}"
            )
    for index, group in enumerate(unit_groups):
        for axis, pattern in patterns.items():
            named = [member.layer for member in group.members if member.layer in (pattern or ())]
            if named and len(group.members) > 1:
                raise UserError(
                    f"{axis}_pattern names {named[0]}, which shares its units with other layers "
                    f"(channel={config.channel}, attention={config.attention}); give rows or ratio instead"
                )
            if pattern and named and axis == group.axis:
                steps[index] = pattern[group.name]
    return steps


def _usual_targets(model: nn.Module) -> Sequence[str]:
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind not in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING:
        raise UserError(
            f'target_modules is not set and PEFT has none for model type {kind}; set it, e.g. to "all-linear"'
        )
    return TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING[kind]
