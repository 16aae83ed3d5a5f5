"""A run's training: the trainer set up with its clock and its checkpoints, run, and recorded."""

from functools import partial

import torch

from rowsft import measure
from rowsft.methods.optimizing import Optimizing
from rowsft.runner import resuming, sharding, stopping
from rowsft.runner.checkpoints import CheckpointCallback, RunState
from rowsft.runner.context import Job
from rowsft.runner.evaluation import evaluate_examples, takes_part
from rowsft.runner.progress import StepProgress
from rowsft.runner.trainer import OrderedTrainer, build_trainer
from rowsft.runner.validating import Validation
from rowsft.store import checkpoints
from rowsft.tracking.content import point


def train(job: Job) -> None:
    """Train what the method trains, from the start or from a checkpoint; record curve, clocks and memory."""
    if not job.method.trains:
        job.model.to(job.device)
        return
    clock = measure.StepClock(job.settings.timing_warmup_steps, job.device)
    with job.attempt.scratch() as scratch, job.clock.phase("train"):
        if job.ranks.is_sharded:
            sharding.shard(job.model, job.ranks, job.device)
        job.trainer = build_trainer(
            job.model,
            job.encoded,
            job.task.collator(job.loaded.processor, job.model),
            job.settings,
            job.seed,
            clock,
            lambda row: job.tracker.log(*point(row)),
            scratch,
            normalises_by_tokens=job.task.head.normalises_by_tokens,
            ranks=job.ranks,
            optimizing=Optimizing(job.method),
        )
        if job.stop_after_steps is not None:
            job.trainer.args.max_steps = job.stop_after_steps
        job.trainer.add_callback(StepProgress(job.progress, job.trainer))
        validation = _validate(job, job.trainer)
        _checkpoint(job, job.trainer, clock, validation)
        per_step = job.settings.batch_size * job.settings.gradient_accumulation
        job.say(f"  training for {job.trainer.args.max_steps} steps of {per_step}")
        resumption = _go_on(job, job.trainer, clock)
        with job.metered("train"), stopping.waiting(job.settings.checkpoint_stop_seconds):
            job.trainer.train(resume_from_checkpoint=str(resumption.folder) if resumption else None)
        if resumption:
            job.memory.enter("train", resuming.larger(job.memory["train"], resumption.state.peaks))
    clock.count_beside(job.ranks.gathered(clock.counts())[1:])
    curve = job.trainer.curve
    assert job.trainer.checkpoints is not None, "set above"
    seconds = {"checkpoint_seconds": job.trainer.checkpoints.seconds} if job.trainer.checkpoints.seconds else {}
    if validation is not None:
        seconds["validation_seconds"] = validation.seconds
    assert job.trainer.optimizer is not None, "it has trained"
    optimization = job.trainer.optimizing.in_record(job.model, job.trainer.optimizer)
    job.attempt.update(
        **clock.summary(),
        train_loss_final=curve[-1]["loss"],
        optimization=optimization,
        **seconds,
        **_inputs(job.model),
    )
    job.attempt.write_curve(curve)
    job.curve_written = True


def _validate(job: Job, trainer: OrderedTrainer) -> Validation | None:
    """Have the validation split evaluated as often as it is asked for; None where it is not."""
    every = job.settings.evaluate_every
    if every is None or job.stop_after_steps is not None:
        return None

    def evaluate() -> dict[str, float]:
        metrics = evaluate_examples(job, job.splits["validation"], None).metrics if takes_part(job) else {}
        # Other processes wait here, as long as it takes: exchanging gradients they would give up after some minutes.
        job.ranks.handed_on(None)
        return metrics

    before = job.resumption.state.validation_seconds if job.resumption else 0.0
    validation = Validation(every, evaluate, trainer, job.device, before)
    trainer.add_callback(validation)
    return validation


def _checkpoint(job: Job, trainer: OrderedTrainer, clock: measure.StepClock, validation: Validation | None) -> None:
    """Have the trainer's checkpoints written into the attempt, with what this suite keeps of a training beside it."""

    def state(checkpoint_seconds: float) -> RunState:
        return RunState(
            step=trainer.state.global_step,
            digest=trainer.changes.digest,
            curve=trainer.curve,
            steps=clock.state(),
            seconds=resuming.as_json(job.clock.summary()),
            checkpoint_seconds=checkpoint_seconds,
            peaks=measure.gpu_peaks(job.device),
            validation_seconds=validation.seconds if validation else 0.0,
        )

    keep = partial(checkpoints.keep, attempt=job.attempt.path)
    trainer.checkpointing(CheckpointCallback(job.settings, state, keep, job.say, job.ranks.handed_on))


def _go_on(job: Job, trainer: OrderedTrainer, clock: measure.StepClock) -> resuming.Resumption | None:
    """Set curve and clocks to where the run goes on, if it does; the dashboard of the new attempt gets all of it."""
    resumption = job.resumption
    if resumption is None:
        return None
    resuming.check_same(resumption, trainer.changes.digest)
    state = resumption.state
    # What is counted over all processes goes on in the first of them.
    clock.resume(state.steps if job.ranks.is_first else {**state.steps, "tokens": [0, 0], "examples": 0, "batches": 0})
    for row in state.curve:
        trainer.curve.append(row)
        trainer.on_point(row)
    assert trainer.checkpoints is not None, "set before"
    trainer.checkpoints.seconds = state.checkpoint_seconds
    return resumption


def _inputs(model: torch.nn.Module) -> dict:
    """How many layers had their input computed again in backward, and how many kept it; of a method that says so."""
    sources = getattr(model.base_model, "input_sources", None)
    if sources is None:
        return {}
    layers = list(sources().values())
    rebuilt = sum(source.startswith("rebuilt") for source in layers)
    return {"inputs": {"rebuilt": rebuilt, "kept": len(layers) - rebuilt}}
