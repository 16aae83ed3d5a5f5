"""One run, top to bottom, by the same code for every method: load, select, attach, train, evaluate, save, record."""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from omegaconf import OmegaConf

from rowsft import measure
from rowsft.compat.liger import check_fused_loss
from rowsft.compat.optimizer_8bit import require_bitsandbytes
from rowsft.config.instantiate import bad_input, instantiated
from rowsft.config.retrying import retry_policy
from rowsft.config.run_spec import RunSpec
from rowsft.config.settings import TrainerSettings
from rowsft.errors import UserError
from rowsft.method_info import info_of, to_record
from rowsft.methods.base import method_of
from rowsft.methods.optimizing import check_optimizing
from rowsft.models.checkpoint import write_checkpoint
from rowsft.runner import forgetting, memory_probe, rank_failure, resuming, sharding
from rowsft.runner.context import Job, Outcome
from rowsft.runner.device import run_device
from rowsft.runner.evaluation import evaluate, evaluate_examples, takes_part
from rowsft.runner.loading import load_all
from rowsft.runner.rank_costs import over_ranks
from rowsft.runner.ranks import ALONE, Ranks
from rowsft.runner.selection import select
from rowsft.runner.training import train
from rowsft.runner.unrecorded import UnrecordedAttempt
from rowsft.selection.budget import Budget
from rowsft.store import OpenAttempt, Store, checkpoints
from rowsft.store.attempt import error_fields, state_of
from rowsft.store.run_log import RunLog
from rowsft.tasks import Task
from rowsft.tracking.content import final_numbers
from rowsft.tracking.tracker import NullTracker, Tracker, tracking

# Seconds that rank 0 has for saying what is wrong with the input before another process ends for it.
_MISTAKE_SECONDS = 10


def run(
    spec: RunSpec,
    settings: TrainerSettings,
    rerun: bool,
    say: Callable[[str], None],
    log: RunLog | None = None,
    ranks: Ranks = ALONE,
) -> Outcome:
    """Run what `spec` describes, or return the recorded outcome if it was done before and `rerun` is false.

    log: what the run prints, to be kept with its attempt. ranks: the processes of the run, of which this is one.
    A run that fails, runs out of memory or is interrupted leaves a record that says so; the outcome carries its state.
    Bad input is raised as UserError: before training it leaves no trace in the store, later a failure.
    """
    if not ranks.is_first:
        return _follow(spec, settings, ranks)
    parts = build(spec)
    check_optimizing(parts["method"], settings)
    if settings.optimizer == "adamw_8bit":
        require_bitsandbytes("trainer.optimizer=adamw_8bit")
    if settings.fused_linear_cross_entropy:
        check_fused_loss(run_device(settings))
    clock = measure.PhaseClock(run_device(settings))
    if rerun or not Store(spec.store).is_done(spec.run_id):
        _read_ahead(parts["task"], clock)
    with Store(spec.store).open(spec.config) as folder:
        done = folder.record.result
        if done and not rerun:
            ranks.handed_on(None)
            return Outcome(spec.run_id, folder.path, "done", done.metrics, "done already (--rerun repeats it)")
        retry = retry_policy(spec.config)
        action = "start" if rerun else retry.action(folder.record.state)
        if action == "leave":
            ended = folder.record.state
            ranks.handed_on(None)
            return Outcome(spec.run_id, folder.path, ended, {}, retry.left(ended))
        resumption = resuming.last_checkpoint(folder.record) if action == "resume" else None
        attempt = folder.begin(
            environment=measure.collect({"seed": spec.config["seed"]}),
            concurrent_jobs=int(os.environ.get("ROWSFT_CONCURRENT_JOBS", 1)),
            method_info=to_record(info_of(parts["method"])),
            # Of the process that was asked for the run.
            **({"pid": ranks.launcher} if ranks.launcher else {}),
        )
        if log is not None:
            attempt.keep_log(log)
        # Also where a stop comes while this one gets an error's costs together.
        folder.is_left = lambda: ranks.is_watched
        job = Job(spec, settings, attempt, say, clock=clock, ranks=ranks, **parts)
        try:
            ranks.handed_on((attempt.number, resumption))
            if resumption is not None:
                resuming.begin(job, resumption)
            _perform(job)
        except BaseException as error:
            mistake = bad_input(error)
            rank_failure.report(mistake or error, clock.phase_name)
            if mistake is not None and job.trainer is None:
                # Nothing was trained: a mistake in settings, data or model folder is no result to keep.
                folder.withdraw()
                raise mistake from error
            if ranks.is_watched:
                # Which process ended first, and why, is known to the launcher alone.
                _enter_costs(job)
                folder.leave_open()
                raise
            state = _close(job, error)
            if not isinstance(error, Exception):
                raise
            if mistake is not None:
                raise mistake from error
            return Outcome(spec.run_id, folder.path, state, {}, f"{type(error).__name__}: {error}")
        checkpoints.remove_all(folder.path)
        return Outcome(spec.run_id, folder.path, "done", attempt.fields.metrics)


def _follow(spec: RunSpec, settings: TrainerSettings, ranks: Ranks) -> Outcome:
    """Take part in the run that rank 0 records, if there is one to do."""
    begun = ranks.handed_on(None)
    if begun is not None:
        number, resumption = begun
        parts = {**build(spec), "tracker": NullTracker()}
        with tempfile.TemporaryDirectory(prefix="rowsft-rank-") as folder:
            attempt = UnrecordedAttempt(number, Path(folder))
            clock = measure.PhaseClock(run_device(settings))
            job = Job(spec, settings, attempt, lambda text: None, clock=clock, ranks=ranks, **parts)
            job.resumption = resumption
            try:
                _perform(job)
            except BaseException as error:
                mistake = bad_input(error)
                rank_failure.report(mistake or error, clock.phase_name)
                if mistake is not None:
                    # Rank 0 finds the same, says it, and takes its attempt back, unless this one's end cuts that short.
                    time.sleep(_MISTAKE_SECONDS)
                raise
    return Outcome(spec.run_id, spec.folder, "done", {})


def _read_ahead(task: Task, clock: measure.PhaseClock) -> None:
    """Read the data before the run has a folder: what is wrong with them is the user's to correct, and no run failed.

    Any other error is left to the run, which reads again and records it.
    """
    try:
        with clock.phase("data"):
            task.splits()
    except Exception as error:
        mistake = bad_input(error)
        if mistake is not None:
            raise mistake from error


def _perform(job: Job) -> None:
    run_id = f"{job.spec.run_id}-{job.attempt.number}"
    with tracking(job.tracker, run_id, job.spec.config, job.spec.experiment), job.until_end:
        before_training = (forgetting.read_text, load_all, select, _attach, forgetting.keep_originals)
        for step in (*before_training, train, evaluate, _save, forgetting.measure, probe_memory):
            step(job)
            # What kills a process for its memory lets it write nothing more.
            job.attempt.update(memory=job.memory.record)
        job.attempt.update(**{**_costs(job), **over_ranks(job)})
        job.tracker.show(job.attempt.fields, job.attempt.path.parent)
        job.tracker.summary(final_numbers(job.attempt.fields))
    if isinstance(job.attempt, OpenAttempt):
        job.attempt.finish("done")


def build(spec: RunSpec) -> dict[str, Any]:
    """Method, task, budget and tracker as the configuration describes them. Reads no data."""
    config = OmegaConf.create(spec.config)
    return {
        "method": method_of(config.method),
        "task": instantiated("task", config.task, Task),
        "tracker": instantiated("tracker", config.tracker, Tracker),
        "budget": Budget(**spec.config["budget"]),
    }


def _costs(job: Job) -> dict[str, Any]:
    """The record's seconds and memory; its energy only where there is one, and where no earlier process used some."""
    energy = {"energy": job.energy.record} if job.energy.record.kind and job.resumption is None else {}
    return {"seconds": job.clock.summary(), "memory": job.memory.record, **energy}


def _attach(job: Job) -> None:
    with job.clock.phase("attach"):
        transformers.set_seed(job.seed)
        job.model = job.method.attach(job.model, job.resolved)
        counts = job.method.trainable(job.model)
        if job.method.trains and not any(parameter.requires_grad for parameter in job.model.parameters()):
            raise UserError(f"method={job.method.name}: attach left no parameter to train; see Method.attach")
        job.attempt.update(
            resolved=job.resolved.values,
            parameters={
                "adapter": counts["adapter"],
                "head": counts["head"],
                "total_trainable": counts["adapter"] + counts["head"],
                "base": job.loaded.facts["parameters"],
                "adapter_dtype": _adapter_dtype(job.model),
                "budget_asked": job.resolved.asked,
                "budget_achieved": job.resolved.achieved,
                "budget_source": job.resolved.source,
            },
        )


def _adapter_dtype(model: torch.nn.Module) -> str | None:
    """The types of what is trained, e.g. "float32"; None where nothing is."""
    kinds = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.requires_grad}
    return "+".join(sorted(kinds)) or None


def _save(job: Job) -> None:
    with job.clock.phase("save"):
        if job.method.trains:
            with sharding.whole_trained(job.model, keep=job.ranks.is_first):
                job.attempt.write_folder("adapter", lambda folder: _write_trained(job, folder))


def _write_trained(job: Job, folder: Path) -> None:
    if job.method.saves_checkpoint:
        write_checkpoint(job.model, job.loaded.processor, job.task.about().get("classes"), folder)
    else:
        job.method.save(job.model, folder)


def probe_memory(job: Job) -> None:
    if not memory_probe.wanted(job):
        return
    with job.clock.phase("measure"):
        if takes_part(job):
            memory_probe.evaluation(job, lambda examples: evaluate_examples(job, examples, None))
        # Here, for an exchange of gradients would not wait as long.
        job.ranks.handed_on(None)
        memory_probe.training_step(job)


def _close(job: Job, error: BaseException) -> str:
    """Record how the run ended, with what was measured up to there; returns its state."""
    _enter_costs(job)
    assert isinstance(job.attempt, OpenAttempt), "who only follows records nothing"
    job.attempt.finish(state_of(error), error=error_fields(error, job.clock.phase_name))
    return state_of(error)


def _enter_costs(job: Job) -> None:
    job.attempt.update(**_costs(job))
    if job.trainer is not None and job.trainer.curve and not job.curve_written:
        job.attempt.write_curve(job.trainer.curve)
