"""`measure=alone`: step time and memory of a finished run, measured again from its adapter with no job beside it."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import transformers

from rowsft import measure
from rowsft.config.instantiate import bad_input
from rowsft.config.run_spec import RunSpec
from rowsft.config.settings import TrainerSettings
from rowsft.errors import UserError
from rowsft.methods.base import Method, ReloadedMethod, ResolvedMethod
from rowsft.record import Alone, PhaseMemory, is_alone
from rowsft.runner import resuming
from rowsft.runner.context import Job, Outcome
from rowsft.runner.device import run_device
from rowsft.runner.extra_step import extra_step, largest_micro_batch
from rowsft.runner.loading import load_all
from rowsft.runner.run import build, probe_memory
from rowsft.runner.training import train
from rowsft.runner.unrecorded import UnrecordedAttempt
from rowsft.store import Record, Store
from rowsft.store.attempt import state_of
from rowsft.store.files import sha256
from rowsft.store.record import now
from rowsft.tracking.tracker import NullTracker


def measure_alone(spec: RunSpec, settings: TrainerSettings, again: bool, say: Callable[[str], None]) -> Outcome:
    """Measure the finished run that `spec` describes and enter it in its record, which is otherwise left as it is.

    A run that was measured with no job beside it already is left, unless `again`. Raises UserError for a run without a
    result or without an adapter, and where other jobs run beside this one.
    """
    if (at_once := int(os.environ.get("ROWSFT_CONCURRENT_JOBS", 1))) > 1:
        one = "set hydra.launcher.jobs=1, or hydra.launcher.array_parallelism=1 on Slurm"
        raise UserError(f"measure=alone: {at_once} jobs run side by side; expected one: {one}")
    parts = build(spec) | {"tracker": NullTracker()}
    clock = measure.PhaseClock(run_device(settings))
    if not Store(spec.store).is_done(spec.run_id):
        raise UserError(f"run {spec.run_id}: not done, so there is nothing to measure; run it without measure=alone")
    with Store(spec.store).open(spec.config) as folder:
        result = folder.record.result
        assert result is not None, "it was there, and results stay"
        if not parts["method"].trains or (is_alone(result) and not again):
            why = "measured alone already (--rerun repeats it)" if parts["method"].trains else "trains nothing"
            return Outcome(spec.run_id, folder.path, "done", result.metrics, why)
        try:
            with tempfile.TemporaryDirectory(prefix="rowsft-alone-") as scratch:
                attempt = UnrecordedAttempt(result.attempt, Path(scratch))
                alone = _measured(Job(spec, _idle(settings), attempt, say, clock=clock, **parts), folder.record)
        except Exception as error:
            if (mistake := bad_input(error)) is not None:
                raise mistake from error
            why = f"measuring alone ended with {type(error).__name__}: {error}; the record is as it was"
            return Outcome(spec.run_id, folder.path, state_of(error), {}, why)
        folder.put(folder.attempt(result.attempt).changed(alone=alone))
        return Outcome(spec.run_id, folder.path, "done", result.metrics)


def _measured(job: Job, record: Record) -> Alone:
    """Take the steps and the memory probes on what the run has saved."""
    environment = measure.collect({"seed": job.seed})
    job.say(f"measuring run {record.id} alone: steps at a learning rate of 0")
    job.stop_after_steps = job.spec.config["measure_steps"]
    load_all(job)
    job.model = _reloaded(job, record)
    train(job)
    _largest_step(job)
    probe_memory(job)
    taken = job.attempt.fields
    return Alone.of(
        measured_at=now(),
        environment=environment,
        concurrent_jobs=1,
        steps=taken.steps,
        tokens_per_second=taken.tokens_per_second,
        step_seconds=taken.step_seconds,
        data_seconds=taken.data_seconds,
        memory=job.memory.record.changed(select=PhaseMemory()),
    )


def _largest_step(job: Job) -> None:
    """A GPU has counted the memory of the steps taken; the largest batch of the run need not be among them."""
    if job.device.type != "cuda" or job.trainer is None:
        return
    so_far = job.memory["train"]
    names = ("peak_allocated_bytes", "peak_reserved_bytes", "process_peak_bytes")
    with measure.watched(job.memory, "train", job.device, job.gpu):
        extra_step(job.trainer, largest_micro_batch(job.trainer))
    peaks = {name: value for name in names if (value := getattr(so_far, name)) is not None}
    job.memory.enter("train", resuming.larger(job.memory["train"], peaks))


def _idle(settings: TrainerSettings) -> TrainerSettings:
    """The run's own settings, with steps that change nothing and are never written down."""
    return replace(
        settings,
        learning_rate=0.0,
        checkpoint_minutes=None,
        checkpoint_steps=None,
        memory_probe_steps=max(1, settings.memory_probe_steps),
    )


def _reloaded(job: Job, record: Record) -> Any:
    result, folder = record.result, record.file("adapter")
    assert result is not None, "the caller has looked"
    if folder is None or not folder.is_dir():
        raise UserError(f"run {record.id}: its adapter is gone, so there is nothing to measure; run it again (--rerun)")
    if sha256(folder) != result.files["adapter"].sha256:
        raise UserError(
            f"run {record.id}: its adapter is not the one that was recorded ({folder} has changed since), so its step "
            "time would be that of another one; run it again (--rerun)"
        )
    method: Method = job.method
    if not isinstance(method, ReloadedMethod):
        raise UserError(
            f"method={method.name}: it has no `load`, so what it has saved cannot be measured again; see "
            "rowsft.methods.base.ReloadedMethod"
        )
    transformers.set_seed(job.seed)
    job.resolved = ResolvedMethod(dict(result.resolved))
    model = method.load(job.model, job.resolved, folder)
    trained, before = method.trainable(model), result.parameters
    if (trained["adapter"], trained["head"]) != (before.adapter, before.head):
        raise UserError(
            f"run {record.id}: its adapter trains {trained['adapter']:,} parameters and {trained['head']:,} of the "
            f"head, its record says {before.adapter:,} and {before.head:,}; run it again (--rerun)"
        )
    return model
