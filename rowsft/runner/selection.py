"""A run's choice of what to train: the budget solved, and the importance metric shown its batches."""

from collections.abc import Iterator
from contextlib import contextmanager

from rowsft.importance.calibration import Calibration
from rowsft.importance.recomputing import recomputing
from rowsft.methods.base import calibrating, selected
from rowsft.models.loading import targets_of
from rowsft.progress import bar
from rowsft.record import PhaseMemory
from rowsft.runner import memory_probe, resuming
from rowsft.runner.calibration import TrainingBatches
from rowsft.runner.context import Job
from rowsft.runner.head_warmup import warmed_head


def select(job: Job) -> None:
    """Solve the budget and choose what to train. Only training data are shown to the importance metric."""
    targets = targets_of(job.spec.config["model"], job.task.head)
    with job.clock.phase("select"):
        job.resolved = job.method.solve(job.budget, job.model, targets)
        calibration = _calibration(job) if calibrating(job.method) else None
        sizes, recompute = job.resolved, job.settings.gradient_checkpointing and bool(calibration)
        with job.metered("select"), recomputing(job.model, recompute):
            job.resolved = selected(job.method, job.model, sizes, calibration or ())
    if calibration:
        job.attempt.update(scores_from_cache=calibration.was_read)
        if calibration.was_read and not (memory_probe.wanted(job) and job.device.type == "cpu"):
            # Nothing was scored, so nothing was measured; on a CPU the probe below scores once more.
            job.memory.enter("select", PhaseMemory())
        if job.resumption is not None:
            resuming.selected(job, job.resumption)
        elif memory_probe.wanted(job):
            with job.clock.phase("measure"):
                memory_probe.selection(job, sizes, calibration)
    _say_budget(job)


def _calibration(job: Job) -> Calibration:
    collate = job.task.collator(job.loaded.processor, job.model)
    batches = TrainingBatches(job.encoded, collate, job.settings, job.seed, job.device)
    # A repetition measures what the first attempt did, scoring too; one that goes on has been through that.
    again, revision = job.attempt.number > 1 and job.resumption is None, job.loaded.revision
    return batches.calibration(job.spec.store, job.spec.config, revision, again, lambda: _warmed(job, batches))


@contextmanager
def _warmed(job: Job, batches: TrainingBatches) -> Iterator[None]:
    """The block scores under a head trained for trainer.warm_head steps; every method trains from the fresh one."""
    steps = job.settings.warm_head
    job.say(f"  warming the head for {steps} steps")
    warming = bar("warming the head")(batches.first(steps, repeat=True), total=steps)
    with warmed_head(job.model, job.resolved.values["head_modules"], warming, job.settings.learning_rate) as losses:
        job.attempt.update(warm_head={"steps": steps, "loss_first": losses[0], "loss_last": losses[-1]})
        yield


def _say_budget(job: Job) -> None:
    resolved = job.resolved
    if resolved.achieved is not None and resolved.asked:
        off = 100 * (resolved.achieved - resolved.asked) / resolved.asked
        counts = f"asked {resolved.asked:,}, got {resolved.achieved:,} parameters ({off:+.2f} %)"
        job.say(f"  budget ({resolved.source}): {counts}")
