"""Typed settings, checked before anything heavy is imported."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rowsft.devices import DEVICE
from rowsft.errors import UserError

SCHEDULERS = ("constant", "linear", "cosine", "step_epoch")
SPLITS = ("train", "validation", "test")


@dataclass
class TrainerSettings:
    """The keys of conf/trainer/*.yaml, where each is explained. Sizes are counts of examples, batches or steps."""

    learning_rate: float = 1e-4
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
    eval_batch_size: int = 64
    evaluate: list[str] = field(default_factory=lambda: ["validation", "test"])
    calibration_batches: int = 50
    warm_head: int = 0
    timing_warmup_steps: int = 10
    memory_probe_steps: int = 2
    logging_steps: int = 1
    device: str = "auto"


def trainer_settings(config: DictConfig) -> TrainerSettings:
    """Check `config.trainer` and return it typed. Raises UserError naming the key and the value."""
    try:
        merged = OmegaConf.merge(OmegaConf.structured(TrainerSettings), config.trainer)
        settings: TrainerSettings = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = f"trainer.{error.full_key}" if getattr(error, "full_key", None) else "trainer"
        raise UserError(f"{key}: {str(error).splitlines()[0]}; see conf/trainer/default.yaml") from error
    _check(settings)
    seed = config.seed
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise UserError(f"seed={seed}: expected a whole number from 0 to 2**32 - 1")
    return settings


def _check(settings: TrainerSettings) -> None:
    counts = "batch_size gradient_accumulation eval_batch_size calibration_batches logging_steps"
    for name in f"learning_rate scheduler_gamma {counts}".split():
        _require(getattr(settings, name) > 0, name, settings, "a number above 0")
    for name in ["weight_decay", "max_grad_norm", "warm_head", "timing_warmup_steps", "memory_probe_steps"]:
        _require(getattr(settings, name) >= 0, name, settings, "0 or more")
    if settings.steps is None:
        _require(settings.epochs is not None and settings.epochs > 0, "epochs", settings, "above 0 where steps is null")
    else:
        _require(settings.steps > 0, "steps", settings, "above 0, or null to train for trainer.epochs")
        _require(settings.epochs is None, "epochs", settings, "null, or set trainer.steps=null")
    _require(0 <= settings.warmup_ratio < 1, "warmup_ratio", settings, "a share from 0 to below 1")
    _require(settings.scheduler in SCHEDULERS, "scheduler", settings, f"one of {', '.join(SCHEDULERS)}")
    _require(settings.autocast in (None, "bf16", "fp16"), "autocast", settings, "null, bf16 or fp16")
    _require(DEVICE.fullmatch(settings.device) is not None, "device", settings, "auto, cpu, cuda or cuda:NUMBER")
    once = len(settings.evaluate) == len(set(settings.evaluate)) > 0
    _require(once, "evaluate", settings, f"at least one of {', '.join(SPLITS)}, each once")
    for split in settings.evaluate:
        _require(split in SPLITS, "evaluate", settings, f"a list out of {', '.join(SPLITS)}")


def _require(holds: bool, name: str, settings: TrainerSettings, expected: str) -> None:
    if not holds:
        value: Any = getattr(settings, name)
        raise UserError(f"trainer.{name}={value}: expected {expected}")
