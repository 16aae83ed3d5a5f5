"""What a run would need, before it is run: its real code on tensors without data.

May import what a run does, and report for pictures. Must not touch the store, load weights or need a device.
"""

import gc
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from omegaconf import DictConfig
from torch import nn

from rowsft.compat.torch import LACKS_DATA
from rowsft.config.settings import TrainerSettings
from rowsft.errors import UserError
from rowsft.method_info import info_of
from rowsft.methods.base import calibrating, selection_bounds
from rowsft.methods.optimizing import Optimizing
from rowsft.models.capacity import check_length
from rowsft.models.options import check_autocast
from rowsft.plan.evaluating import evaluation_peak
from rowsft.plan.fit import Demand
from rowsft.plan.forgetting import ForgettingPlan, plan_forgetting
from rowsft.plan.lengths import Lengths
from rowsft.plan.planned_run import PlannedRun, planned_run
from rowsft.plan.scoring import selection_peak
from rowsft.plan.step import StepPlan, plan_step
from rowsft.plan.without_data import UnknownWithoutData

# torch's words for an operator that needs values.
_OF_META = re.compile(r"meta tensor|meta device type|meta kernel|register_meta", re.I)
_REFUSALS = (UnknownWithoutData, *LACKS_DATA)


@dataclass(frozen=True)
class Plan:
    """What one configuration needs. bounds: where a part of the choice is not known before scores are, the peak in
    bytes for each extreme; empty where there is one way. selection_bytes: the peak while rows are scored; None where
    nothing is scored on data. evaluation_bytes: the peak of evaluating; None where training alone was planned.
    forgetting: what measuring a general text takes, its peak with the optimizer's state; None where none is asked for.
    """

    run: PlannedRun
    step: StepPlan
    trainable: Counter
    total: Counter
    head_parameters: int
    bounds: dict[str, int]
    selection_bytes: int | None
    evaluation_bytes: int | None
    forgetting: ForgettingPlan | None = None

    @property
    def peak_bytes(self) -> int:
        """Bytes of all tensors at the largest moment of training."""
        return self.step.peak.total

    @property
    def demands(self) -> dict[str, Demand]:
        """What a device has to hold in each stage of the run: training, scoring, evaluating and measuring what was
        forgotten, as far as planned."""
        training = max(self.peak_bytes, *self.bounds.values()) if self.bounds else self.peak_bytes
        sizes = {"training": training, "scoring": self.selection_bytes, "evaluating": self.evaluation_bytes}
        sizes["forgetting"] = self.forgetting.peak_bytes if self.forgetting else None
        return {stage: Demand(size) for stage, size in sizes.items() if size is not None}

    @property
    def demand(self) -> Demand:
        """What a device has to hold through all of the run."""
        return max(self.demands.values(), key=lambda demand: demand.tensor_bytes)


@contextmanager
def _collecting_when_told() -> Iterator[None]:
    """No collection of cycles inside but `gc.collect`: it would look through all of a network's modules time and again,
    and when it frees what would depend on what the process did before."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@_collecting_when_told()
def plan(
    config: DictConfig,
    settings: TrainerSettings,
    changes: Mapping[str, Any] | None = None,
    training_only: bool = False,
    lengths: Lengths | None = None,
) -> Plan:
    """Plan the run that `config` (composed, with `settings` checked) describes.

    changes: trainer settings that take the place of configured ones. training_only: leaves out the rest. lengths: of
    the examples; None assumes the longest that the task allows, and reads no data.
    Raises UserError for what cannot be planned.
    """
    run = planned_run(config, settings, changes, lengths)
    base = run.base()
    check_autocast(base.config, run.settings.autocast)
    check_length(base, max(run.length, run.task.max_length or 0))
    run.task.check_model(base)
    resolved = run.sizes(base)
    prefix = info_of(run.method).adapter_prefix
    total = _by_kind(base, trained_only=False, prefix=None)
    selection = None
    if not training_only and (method := calibrating(run.method)):
        selection = _or_refuse(run, lambda: selection_peak(run, method, base, resolved))
    ways = selection_bounds(run.method, base, resolved)
    largest: tuple[StepPlan, nn.Module, Counter] | None = None
    bounds = {}
    for name, way in ways.items():
        model = _or_refuse(run, lambda way=way: run.attached(way))
        # A step may freeze some of it for a while.
        trainable = _by_kind(model, trained_only=True, prefix=prefix)
        step = _or_refuse(run, lambda model=model: step_of(run, model))
        bounds[name] = step.peak.total
        if largest is None or step.peak.total > largest[0].peak.total:
            largest = step, model, trainable
        gc.collect()
    assert largest is not None, "a method has one way to choose at least"
    step, model, trainable = largest
    evaluation = forgetting = None
    if not training_only:
        # The optimizer's state stays while the trained model is evaluated.
        state = max(moment.parts["optimizer_state"] for moment in step.peaks.values())
        evaluation = state + _or_refuse(run, lambda: evaluation_peak(run, model))
        forgetting = _or_refuse(run, lambda: plan_forgetting(run, base, model))
        if forgetting is not None:
            forgetting = replace(forgetting, peak_bytes=state + forgetting.peak_bytes)
    return Plan(
        run=run,
        step=step,
        trainable=trainable,
        total=total,
        head_parameters=run.method.trainable(model)["head"],
        bounds=bounds if len(bounds) > 1 else {},
        selection_bytes=selection,
        evaluation_bytes=evaluation,
        forgetting=forgetting,
    )


def step_of(run: PlannedRun, model: nn.Module) -> StepPlan:
    """The warm training step of an attached model."""
    return plan_step(
        model,
        run.batch(model),
        run.gpu,
        run.padded,
        run.settings.gradient_accumulation,
        run.settings.max_grad_norm,
        run.loss_arguments(model),
        Optimizing(run.method),
        run.settings.optimizer,
    )


def _or_refuse(run: PlannedRun, work):
    """Turn what the meta device cannot do into one error: no figure is made up. A bug of ours stays what it is."""
    try:
        return work()
    except (*_REFUSALS, NotImplementedError, RuntimeError, TypeError) as error:
        if not _lacks_data(error):
            raise
        first = " ".join(str(error).split())[:200]
        raise UserError(
            f"method={run.method.name} with model={run.config.model.name} cannot be planned: it needs values that "
            f"only a run has ({type(error).__name__}: {first}); measure it with rowsft run trainer.steps=3"
        ) from error


def _lacks_data(error: Exception) -> bool:
    """Whether torch refused a tensor for being without data."""
    return isinstance(error, _REFUSALS) or _OF_META.search(str(error)) is not None


def _by_kind(model: nn.Module, trained_only: bool, prefix: str | None) -> Counter:
    """Count parameters by the kind of layer they belong to: the last name that is no part of an adapter.

    prefix: what the names of the adapter's parameters begin with.
    """
    counts: Counter = Counter()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or not trained_only:
            counts[_kind(name, prefix)] += parameter.numel()
    return counts


_ADAPTER_WORDS = ("weight", "bias", "default", "base_layer", "modules_to_save", "original_module")


def _kind(name: str, prefix: str | None) -> str:
    parts = [part for part in name.split(".") if part not in _ADAPTER_WORDS and not part.isdigit()]
    while len(parts) > 1 and prefix and parts[-1].startswith(prefix):
        parts.pop()
    return parts[-1]
