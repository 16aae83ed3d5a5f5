"""Row-SFT on a plain model with any importance metric, also those that need training batches."""

import copy
from collections.abc import Callable, Iterable, Sequence

from peft import PeftModel, get_peft_model
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn

from rowsft.errors import UserError
from rowsft.importance import Context, as_batches, score_layers
from rowsft.importance.registry import no_progress
from rowsft.selection import Targets, choose, eligible_layers, layer_shape
from rowsft.tuner import RowSFTConfig


def score(
    model: nn.Module,
    importance: str,
    calibration: Iterable[dict] = (),
    target_modules: str | Sequence[str] = "all-linear",
    exclude_modules: str | Sequence[str] | None = None,
    layers_to_transform: int | Sequence[int] | None = None,
    head_modules: Sequence[str] = (),
    seed: int = 0,
    group_bytes: int | None = None,
    draws: int = 256,
    progress: Callable[..., Iterable] = no_progress,
) -> dict[str, Tensor]:
    """Score every row of the eligible layers of a plain (not PEFT-wrapped) model, which is left exactly as it was.

    importance: a metric's name. calibration: training batches (dicts of tensors that model.forward accepts, with
    labels) for metrics that need them; any iterable, gone through once. The next four say which layers, as in
    `rowsft.selection.Targets`. seed: of metrics that draw. group_bytes: bytes of gradients and layer inputs held at a
    time; None keeps the peak under that of a training step. draws: perturbations that zo_taylor averages over.
    progress: wraps an iterable of batches, called with (items, total).

    Returns full layer name -> float32 tensor (d_out,) on the CPU, in the model's order. Raises UserError for an
    unknown metric, missing batches, no eligible layer, and losses or scores that are not finite.
    """
    targets = Targets(target_modules, exclude_modules, layers_to_transform, head_modules)
    context = Context(model, as_batches(calibration), seed, group_bytes, draws, progress)
    return score_layers(eligible_layers(model, targets), importance, context)["out"]


def attach(base: nn.Module, config: RowSFTConfig, calibration: Iterable[dict] | None = None) -> PeftModel:
    """Wrap `base` for row-SFT as `config` says: score, choose the rows, `peft.get_peft_model`. Any metric works.

    Rows given by `config.row_ids` are taken as they are. `config` itself is not changed. calibration: see `score`.
    Raises UserError as `score` does, and for a size larger than a layer.
    """
    if config.row_ids is not None:
        return get_peft_model(base, copy.copy(config))
    if config.attention != "linear":
        raise UserError(
            f"attention={config.attention}: expected linear, the only form that rows are chosen for; or give row_ids"
        )
    targets = Targets(
        config.target_modules or _usual_targets(base),
        config.exclude_modules,
        config.layers_to_transform,
        config.modules_to_save or (),
    )
    layers = eligible_layers(base, targets)
    counts = {name: config.rows_of(name, layer_shape(layer)[0]) for name, layer in layers.items()}
    context = Context(base, as_batches(calibration), config.seed)
    scores = score_layers(layers, config.importance, context)["out"]
    chosen = copy.copy(config)
    chosen.row_ids = choose(scores, counts, config.scope)
    chosen.target_modules = set(layers)
    chosen.exclude_modules = chosen.layers_to_transform = chosen.layers_pattern = None
    return get_peft_model(base, chosen)


def _usual_targets(model: nn.Module) -> list[str]:
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind not in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING:
        raise UserError(
            f'target_modules is not set and PEFT has none for model type {kind}; set it, e.g. to "all-linear"'
        )
    return TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING[kind]
