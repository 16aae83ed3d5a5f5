"""The keys `tune` of conf/config.yaml: a sweep's stage that chooses learning rates, and alpha beside them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rowsft.config import typed
from rowsft.errors import UserError, shortened
from rowsft.store.ignored import ignored

LEARNING_RATE = "trainer.learning_rate"
ALPHA = "method.alpha"
#: What stands in for alpha, and is null beside it.
SCALING = "method.scaling"
_PAGE = "docs/tuning.md"
#: Neighbouring rates closer than that are one rate; the half-step refinement could not tell them apart.
LEAST_RATIO = 1.1


@dataclass
class TuneSettings:
    """The keys of `tune`, where each is explained: conf/config.yaml. lr: null leaves the stage out."""

    lr: list[float] | None = None
    alpha: list[float] | None = None
    seeds: list[int] | None = None
    extensions: int = 3
    refine: bool = True
    halving: bool | Mapping[str, Any] = False


@dataclass
class HalvingSettings:
    """The keys of `tune.halving`: of `factor` rates one goes on; steps: the lengths of the short runs, null for powers
    of the factor."""

    factor: int = 3
    steps: list[int] | None = None


def tune_settings(values: Mapping[str, Any] | None) -> TuneSettings:
    """Check the values of `tune` and return them typed. Raises UserError naming the key and the value."""
    settings = typed.read(TuneSettings, values or {}, "tune", _PAGE)
    if settings.lr is not None:
        _check_rates([float(rate) for rate in settings.lr])
    if settings.alpha is not None:
        _check_alphas([float(alpha) for alpha in settings.alpha], settings.lr)
    _require(settings.extensions >= 0, "extensions", settings.extensions, "0 or more")
    seeds = settings.seeds
    if seeds is not None:
        valid = seeds and len(set(seeds)) == len(seeds) and all(0 <= seed < 2**32 for seed in seeds)
        _require(valid, "seeds", seeds, "a list of different seeds, or null for one that the sweep does not use")
    if isinstance(settings.halving, Mapping):
        halving = typed.read(HalvingSettings, settings.halving, "tune.halving", _PAGE)
        _require(halving.factor >= 2, "halving.factor", halving.factor, "2 or more")
        steps = halving.steps
        valid = steps is None or (steps and all(one > 0 for one in steps) and len(set(steps)) == len(steps))
        _require(valid, "halving.steps", steps, "different numbers of steps above 0, or null")
    return settings


def asks_for_a_rate(config: Mapping[str, Any]) -> bool:
    """Return whether a configuration leaves its rate to a tuning stage: one is asked for, and the method has a rate."""
    tune = config.get("tune") or {}
    return bool(tune.get("lr")) and {"trainer", LEARNING_RATE}.isdisjoint(ignored(dict(config)))


def has_alpha(config: Mapping[str, Any]) -> bool:
    """Return whether a configuration's method has an alpha that it reads: LoRA and its relatives do."""
    method = config.get("method")
    return isinstance(method, Mapping) and "alpha" in method and {"method", ALPHA}.isdisjoint(ignored(dict(config)))


def asks_for_an_alpha(config: Mapping[str, Any]) -> bool:
    """Return whether a configuration leaves alpha to a tuning stage, beside the rate."""
    return asks_for_a_rate(config) and bool(config["tune"].get("alpha")) and has_alpha(config)


def with_alpha(config: Mapping[str, Any], alpha: float | None) -> list[str]:
    """Return the overrides that give a configuration's method this alpha; none for None."""
    if alpha is None:
        return []
    return [f"{ALPHA}={alpha!r}", *([f"{SCALING}=null"] if "scaling" in config["method"] else [])]


def named_alpha(overrides: Sequence[str]) -> str | None:
    """Return the override that names alpha itself, or the scaling that it stands for, None where there is none."""
    return next((text for text in overrides if text.lstrip("+").startswith((f"{ALPHA}=", f"{SCALING}="))), None)


def named_rate(overrides: Sequence[str]) -> str | None:
    """Return the override that names the learning rate itself, None where there is none."""
    return next((text for text in overrides if text.lstrip("+").startswith(f"{LEARNING_RATE}=")), None)


def _check_rates(rates: list[float]) -> None:
    _require(len(rates) >= 2, "lr", rates, "at least two learning rates, such as [3e-5,1e-4,3e-4,1e-3,3e-3]")
    _require(min(rates) > 0, "lr", rates, "learning rates above 0")
    ascending = sorted(rates)
    for low, high in zip(ascending, ascending[1:], strict=False):
        if high / low < LEAST_RATIO:
            raise UserError(
                f"tune.lr={shortened(rates)}: {low:g} and {high:g} are one rate; expected neighbours at least a factor "
                f"of {LEAST_RATIO} apart, about 3"
            )


def _check_alphas(alphas: list[float], rates: list[float] | None) -> None:
    valid = alphas and all(0 < alpha < math.inf for alpha in alphas)
    _require(valid, "alpha", alphas, "values of method.alpha above 0, such as [8,16,32], or null for rates alone")
    _require(len(set(alphas)) == len(alphas), "alpha", alphas, "different values of method.alpha")
    if rates is None:
        raise UserError(
            f"tune.alpha={shortened(alphas)}: each alpha is tried at the rates tune.lr, which is null; give rates, "
            f"such as tune.lr=[3e-5,1e-4,3e-4,1e-3,3e-3], or tune.alpha=null; see {_PAGE}"
        )


def _require(holds: object, name: str, value: object, expected: str) -> None:
    if not holds:
        raise UserError(f"tune.{name}={shortened(value)}: expected {expected}; see {_PAGE}")
