"""Typed settings, checked before anything heavy is imported and before the store is touched."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig

from rowsft.config import typed
from rowsft.config.devices import DEVICE
from rowsft.config.experiment_names import check_experiment_name
from rowsft.config.forgetting import ForgettingSettings, check_forgetting, forgetting_settings
from rowsft.config.processes import STRATEGIES
from rowsft.config.retrying import retry_policy
from rowsft.config.tune import tune_settings
from rowsft.errors import UserError, shortened
from rowsft.store.identity import BUDGET_KEYS
from rowsft.store.ignored import named_keys

SCHEDULERS = ("constant", "linear", "cosine", "step_epoch")
OPTIMIZERS = ("adamw", "adamw_8bit")
SPLITS = ("train", "validation", "test")
# Groups whose keys are those of the class or function that `_target_` names; instantiate.py checks them.
BUILT = ("method", "task", "tracker")
QUANTIZE = ("nf4", "nf4_double", "int8")
# More examples than that, repetitions counted, no training goes through; their order is held in memory.
MOST_EXAMPLES = 10**9


@dataclass
class TrainerSettings:
    """The keys of conf/trainer/*.yaml, where each is explained. Sizes are counts of examples, batches or steps."""

    learning_rate: float = 1e-4
    optimizer: str = "adamw"
    steps: int | None = 150
    epochs: float | None = None
    batch_size: int = 16
    gradient_accumulation: int = 1
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    scheduler: str = "linear"
    warmup_ratio: float = 0.06
    scheduler_gamma: float = 0.85
    autocast: str | None = None
    gradient_checkpointing: bool = False
    fused_linear_cross_entropy: bool = False
    eval_batch_size: int = 64
    evaluate: list[str] = field(default_factory=lambda: ["validation", "test"])
    evaluate_every: int | None = None
    forgetting: ForgettingSettings = field(default_factory=ForgettingSettings)
    calibration_batches: int = 50
    calibration_overlap: float | None = None
    warm_head: int = 0
    timing_warmup_steps: int = 10
    memory_probe_steps: int = 2
    logging_steps: int = 1
    checkpoint_minutes: float | None = 15
    checkpoint_steps: int | None = None
    checkpoint_stop_seconds: float = 20
    device: str = "auto"
    strategy: str | None = None
    processes: int | None = None


@dataclass
class ModelSettings:
    """The keys of conf/model/*.yaml, where each is explained."""

    name: str
    source: str
    revision: str | None
    dtype: str | None
    attn_implementation: str | None
    trust_remote_code: bool
    target_modules: str | list[str]
    exclude_modules: str | list[str] | None
    layers_to_transform: int | list[int] | None
    head_modules: list[str] | None
    # Imported before the model is loaded: it may register an architecture with transformers, or a family with rowsft.
    module: str | None = None
    # Whether the weights are the checkpoint's; false draws all of them from the seed, as a control.
    pretrained: bool = True
    # What the base's linear layers are packed in, one of QUANTIZE; null for not at all. Younger than many records.
    quantize: str | None = None


@dataclass
class BudgetSettings:
    """The keys of conf/budget/*.yaml, where each is explained."""

    rows: int | None
    ratio: float | None
    params: int | None
    like: Mapping[str, Any] | None
    default: Mapping[str, Any]
    scope: str
    clip: bool


@dataclass
class RootSettings:
    """The keys of conf/config.yaml that are no group, explained there. `tuned` is gone once it has been used."""

    seed: int
    experiment_name: str
    store: str
    demonstration: Mapping[str, Any] | None
    fairness: Mapping[str, Any] | None
    # What another call does with a run that ended without a result: rowsft/config/retrying.py reads them.
    retry: str | list[str]
    resume_unfinished: bool
    resume_errored: bool
    restart_errored: bool
    # Of the method, as `ignores` in its YAML declares it.
    ignores: list[str]
    # Younger than many records. A sweep's tuning stage: rowsft/config/tune.py reads it.
    tune: Mapping[str, Any] | None = None
    # Not running but measuring again: rowsft/runner/alone.py.
    measure: str | None = None
    measure_steps: int = 40


def check_settings(config: DictConfig | dict[str, Any]) -> None:
    """Check a composed, resolved configuration: every key is read by something, and its value of the reader's type.

    Of the groups that a class reads (`BUILT`) only the outline is checked. Raises UserError naming the key.
    """
    plain = dict(config) if isinstance(config, dict) else typed.plain(config, resolve=False)
    groups = {key: plain.pop(key, None) for key in (*BUILT, "model", "budget", "trainer")}
    for group, settings in groups.items():
        if not isinstance(settings, dict) or not settings:
            raise UserError(f"{group}: not a group of settings; choose one with {group}=NAME (rowsft run --help)")
    for group in BUILT:
        if not isinstance(groups[group].get("_target_"), str):
            raise UserError(f"{group}._target_: names no class or function; choose another with {group}=NAME")
    for group in ("method", "task"):
        if not _is_text(groups[group].get("name")):
            raise UserError(f"{group}.name={shortened(groups[group].get('name'))}: expected text, the name in tables")
    for name in [name for name in plain if name not in RootSettings.__dataclass_fields__]:
        raise typed.unknown(name, [*RootSettings.__dataclass_fields__, *groups, "tuned"], "", "conf/config.yaml")
    check_experiment_name(plain.get("experiment_name"))
    root = typed.read(RootSettings, plain, "", "conf/config.yaml")
    _require_text("store", root.store)
    retry_policy(plain)
    _check_measuring(root, groups["trainer"])
    tune_settings(root.tune)
    if not 0 <= root.seed < 2**32:
        raise UserError(f"seed={root.seed}: expected a whole number from 0 to 2**32 - 1")
    model = typed.read(ModelSettings, groups["model"], "model", "conf/model/")
    _require_text("model.name", model.name)
    _require_text("model.source", model.source)
    if model.quantize not in (None, *QUANTIZE):
        raise UserError(f"model.quantize={shortened(model.quantize)}: expected {', '.join(QUANTIZE)}, or null for none")
    _check_budget(typed.read(BudgetSettings, groups["budget"], "budget", "conf/budget/default.yaml"))
    _check(_trainer(groups["trainer"]))


def _check_measuring(root: RootSettings, trainer: Mapping[str, Any]) -> None:
    if root.measure not in (None, "alone"):
        raise UserError(f"measure={shortened(root.measure)}: expected alone, or null to run")
    if root.measure and trainer.get("strategy") is not None:
        raise UserError(
            f"measure=alone: trainer.strategy={trainer['strategy']} runs in several processes, which are not measured "
            "again; run it again instead, one job at a time (--rerun hydra.launcher.jobs=1)"
        )
    untimed = trainer.get("timing_warmup_steps", 0)
    if root.measure and isinstance(untimed, int) and root.measure_steps <= untimed:
        raise UserError(
            f"measure_steps={root.measure_steps}: expected more than trainer.timing_warmup_steps={untimed}, which are "
            "not timed"
        )


def check_ignored_keys(rules: Sequence[str]) -> None:
    """Raise UserError for a rule that names a key which no configuration has. Keys below `BUILT` are a class's own."""
    kinds: dict[str, Any] = {"trainer": TrainerSettings, "model": ModelSettings, "budget": BudgetSettings}
    inner = {name: kind.__dataclass_fields__ for name, kind in kinds.items()}
    for key in named_keys(rules):
        group, _, rest = key.partition(".")
        is_there = group in {*BUILT, *inner, *RootSettings.__dataclass_fields__}
        if rest and group in inner:
            is_there = rest.split(".")[0] in inner[group]
        if not is_there:
            raise UserError(f"method.ignores: {key}: no such key; expected one such as budget or trainer.warm_head")


def trainer_settings(config: DictConfig) -> TrainerSettings:
    """Check `config.trainer` and return it typed. Raises UserError naming the key and the value."""
    settings = _trainer(typed.plain(config.trainer, resolve=False))
    _check(settings)
    return settings


def _trainer(values: Mapping[str, Any]) -> TrainerSettings:
    if "forgetting" in values:
        values = {**values, "forgetting": forgetting_settings(values["forgetting"])}
    return typed.read(TrainerSettings, values, "trainer", "conf/trainer/default.yaml")


def _check_budget(budget: BudgetSettings) -> None:
    if len(budget.default) != 1 or next(iter(budget.default)) not in BUDGET_KEYS:
        shown = shortened(dict(budget.default))
        raise UserError(f"budget.default={shown}: expected one of {', '.join(BUDGET_KEYS)} with its value")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _require_text(key: str, value: str) -> None:
    if not _is_text(value) or not value.isprintable():
        raise UserError(f"{key}={shortened(value)!r}: expected text on one line, not empty")


def _check(settings: TrainerSettings) -> None:
    counts = "batch_size gradient_accumulation eval_batch_size calibration_batches logging_steps"
    for name in f"learning_rate scheduler_gamma {counts}".split():
        _require(getattr(settings, name) > 0, name, settings, "a number above 0")
    for name in ["checkpoint_minutes", "checkpoint_steps", "evaluate_every"]:
        value = getattr(settings, name)
        _require(value is None or value > 0, name, settings, "a number above 0, or null for none")
    for name in [
        "weight_decay",
        "max_grad_norm",
        "checkpoint_stop_seconds",
        "warm_head",
        "timing_warmup_steps",
        "memory_probe_steps",
    ]:
        _require(getattr(settings, name) >= 0, name, settings, "0 or more")
    if settings.steps is None:
        _require(settings.epochs is not None and settings.epochs > 0, "epochs", settings, "above 0 where steps is null")
    else:
        _require(settings.steps > 0, "steps", settings, "above 0, or null to train for trainer.epochs")
        _require(settings.epochs is None, "epochs", settings, "null, or set trainer.steps=null")
    examples = (settings.steps or 1) * settings.batch_size * settings.gradient_accumulation
    if examples > MOST_EXAMPLES:
        raise UserError(
            f"trainer.steps={settings.steps}, trainer.batch_size={settings.batch_size}, trainer.gradient_accumulation="
            f"{settings.gradient_accumulation}: {examples:,} examples; expected at most {MOST_EXAMPLES:,} in all"
        )
    _require(0 <= settings.warmup_ratio < 1, "warmup_ratio", settings, "a share from 0 to below 1")
    _check_stepping(settings)
    _require(settings.scheduler in SCHEDULERS, "scheduler", settings, f"one of {', '.join(SCHEDULERS)}")
    _require(settings.autocast in (None, "bf16", "fp16"), "autocast", settings, "null, bf16 or fp16")
    _require(DEVICE.fullmatch(settings.device) is not None, "device", settings, "auto, cpu, cuda or cuda:NUMBER")
    _check_strategy(settings)
    check_forgetting(settings.forgetting, settings.strategy)
    overlap = settings.calibration_overlap
    _require(
        overlap is None or 0 < overlap <= 1, "calibration_overlap", settings, "a share above 0 and up to 1, or null"
    )
    once = len(settings.evaluate) == len(set(settings.evaluate)) > 0
    _require(once, "evaluate", settings, f"at least one of {', '.join(SPLITS)}, each once")
    for split in settings.evaluate:
        _require(split in SPLITS, "evaluate", settings, f"a list out of {', '.join(SPLITS)}")


def _check_stepping(settings: TrainerSettings) -> None:
    _require(settings.optimizer in OPTIMIZERS, "optimizer", settings, f"one of {', '.join(OPTIMIZERS)}")
    whole = settings.optimizer == "adamw" or settings.strategy != "fsdp"
    _require(whole, "optimizer", settings, "adamw under trainer.strategy=fsdp, whose parts bitsandbytes cannot step")
    fused, is_off = "fused_linear_cross_entropy", not settings.fused_linear_cross_entropy
    _require(is_off or settings.device != "cpu", fused, settings, "false on a CPU")
    _require(is_off or settings.strategy is None, fused, settings, "false in several processes")


def _check_strategy(settings: TrainerSettings) -> None:
    strategy = settings.strategy
    _require(strategy in (None, *STRATEGIES), "strategy", settings, f"null, {' or '.join(STRATEGIES)}")
    _require(settings.processes is None or settings.processes > 0, "processes", settings, "a number above 0, or null")
    if strategy is None:
        alone = "null where trainer.strategy is null; add trainer=ddp or trainer=fsdp"
        _require(settings.processes is None, "processes", settings, alone)
        return
    several = f"auto, cpu or cuda under trainer.strategy={strategy}, where each process takes a GPU of its own"
    _require(settings.device in ("auto", "cpu", "cuda"), "device", settings, several)
    scaled = strategy == "fsdp" and settings.autocast == "fp16"
    _require(not scaled, "autocast", settings, "null or bf16 under trainer.strategy=fsdp")


def _require(holds: bool, name: str, settings: TrainerSettings, expected: str) -> None:
    if not holds:
        value: Any = getattr(settings, name)
        raise UserError(f"trainer.{name}={value}: expected {expected}")
