"""A run's choice of what to train: the budget solved, and the importance metric shown its batches."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from rowsft.errors import UserError
from rowsft.importance.calibration import Calibration
from rowsft.importance.recomputing import recomputing
from rowsft.methods.base import ResolvedMethod, calibrating, selected
from rowsft.models.loading import targets_of
from rowsft.progress import bar
from rowsft.record import PhaseMemory
from rowsft.runner import memory_probe, resuming
from rowsft.runner.calibration import TrainingBatches
from rowsft.runner.context import Job
from rowsft.runner.head_warmup import warmed_head
from rowsft.selection.ids import overlap


def select(job: Job) -> None:
    """Solve the budget and choose what to train. Only training data are shown to the importance metric.

    Of several processes the first does so, and tells the others: they would score the same batches to choose the same.
    """
    if job.ranks.is_first:
        _select(job)
    if job.ranks.size > 1:
        with job.clock.phase("select"):
            job.resolved = job.ranks.handed_on(job.resolved if job.ranks.is_first else None)


def _select(job: Job) -> None:
    targets = targets_of(job.spec.config["model"], job.task.head)
    with job.clock.phase("select"):
        job.resolved = job.method.solve(job.budget, job.model, targets)
        calibrations = _calibrations(job) if calibrating(job.method) else iter([None])
        sizes = job.resolved
        recompute = job.settings.gradient_checkpointing and calibrating(job.method) is not None
        with job.metered("select"), _computing(job), recomputing(job.model, recompute):
            calibration = _choose(job, sizes, calibrations)
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


@contextmanager
def _computing(job: Job) -> Iterator[None]:
    """The model is on the run's device inside the block, where a metric needs it there."""
    moves = job.whole_device != job.device and calibrating(job.method) is not None
    if moves:
        job.model.to(job.device)
    yield
    if moves:
        job.model.to(job.whole_device)


def _choose(job: Job, sizes: ResolvedMethod, calibrations: Iterator[Calibration | None]) -> Calibration | None:
    """Choose from one calibration after the other until two choices agree as asked; returns the last one's."""
    wanted, before, calibration = job.settings.calibration_overlap, None, None
    for calibration in calibrations:
        job.resolved = selected(job.method, job.model, sizes, calibration or ())
        if wanted is None or calibration is None:
            break
        if job.resolved.chosen is None:
            raise UserError(
                f"trainer.calibration_overlap={wanted}: method={job.method.name} chooses neither rows nor columns "
                "whose overlap could be measured; set it to null"
            )
        share: float | None = overlap(before, job.resolved.chosen) if before is not None else None
        job.attempt.update(calibrated={"batches": len(calibration), "overlap": share})
        if share is not None:
            job.say(f"  {len(calibration)} calibration batches: {100 * share:.1f} % of the choice from half of them")
            if share >= wanted:
                break
        before = job.resolved.chosen
    return calibration


def _calibrations(job: Job) -> Iterator[Calibration]:
    """Yield the batches to score on: all at once, or 2, 4, 8, ... where it may end early."""
    most = job.settings.calibration_batches
    count = 2 if job.settings.calibration_overlap is not None else most
    while count < most:
        yield _calibration(job, count)
        count *= 2
    yield _calibration(job, most)


def _calibration(job: Job, count: int) -> Calibration:
    collate = job.task.collator(job.loaded.processor, job.model)
    batches = TrainingBatches(job.encoded, collate, job.settings, job.seed, job.device)
    # A repetition measures what the first attempt did, scoring too; one that goes on has been through that.
    again, revision = job.attempt.number > 1 and job.resumption is None, job.loaded.revision
    warmed = partial(_warmed, job, batches)
    return batches.calibration(job.spec.store, job.spec.config, revision, again, warmed, count)


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
