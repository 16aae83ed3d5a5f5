"""Exact memory of a run's phases, from extra work once there is nothing left to disturb: peaks, and the ledger."""

from collections.abc import Callable

import torch

from rowsft import measure
from rowsft.batch import largest_batch, longest_first
from rowsft.importance.calibration import Calibration, Rehearsal
from rowsft.importance.recomputing import recomputing
from rowsft.measure.ledger import Ledger
from rowsft.methods.base import ResolvedMethod, selected
from rowsft.runner import sharding
from rowsft.runner.context import Job
from rowsft.runner.extra_step import extra_step, largest_micro_batch


def wanted(job: Job) -> bool:
    """Whether the run measures memory by extra work."""
    return job.settings.memory_probe_steps > 0


def has_ledger(job: Job) -> bool:
    """Whether the parts of the memory are told apart: a ledger knows neither shards nor buffers for exchange."""
    return job.ranks.strategy is None


def selection(job: Job, sizes: ResolvedMethod, calibration: Calibration) -> None:
    """The memory of scoring, on the largest calibration batch."""
    largest = largest_batch(calibration)

    def select(hold: Callable[[dict], None]) -> None:
        # Made anew, so that the batch counts, as training's and evaluation's do.
        batch = {key: value.clone() if torch.is_tensor(value) else value for key, value in largest.items()}
        hold(batch)
        with recomputing(job.model, job.settings.gradient_checkpointing):
            selected(job.method, job.model, sizes, Rehearsal([batch]))

    _measure(job, "select", select)


def evaluation(job: Job, evaluate: Callable[[list[dict]], object]) -> None:
    """The memory of evaluating the largest batch of any split: of the longest examples, with padding where any of them
    has some."""
    # Under autocast the second batch finds the trained weights converted: it may be the one with the peak.
    count = job.settings.eval_batch_size * (2 if job.settings.autocast else 1)
    batches = [_longest(job.splits[split], count) for split in job.settings.evaluate]
    # A split may have fewer examples than a batch. Rows are padded to the longest, which stands first.
    largest = max(batches, key=lambda rows: len(rows) * len(str(rows[0])))
    # The first time leaves what the later ones find: after training with dropout, the originals of the chosen rows.
    evaluate(largest)
    # The optimizer's state stays while the trained model is evaluated.
    optimizer = None if job.trainer is None else job.trainer.optimizer
    _measure(job, "evaluate", lambda hold: evaluate(largest), optimizer)


def _longest(examples: list[dict], count: int) -> list[dict]:
    by_length = longest_first(examples)
    largest = by_length[:count]
    if len(largest) > 1:
        # The longest may all have been cut to one length. The batch in which they end has padding then, and its mask
        # makes it the largest.
        largest[-1] = by_length[-1]
    return largest


def training_step(job: Job) -> None:
    """The memory of a training step on the largest batch. It changes the trained weights, so it comes last."""
    if (trainer := job.trainer) is None:
        return
    batch, optimizer = largest_micro_batch(trainer), trainer.optimizer
    # Evaluating left the originals of the chosen rows, which training with dropout does without. A move, be it to where
    # the model is, drops them; a step of little memory makes those that training keeps.
    if not job.ranks.is_sharded:
        job.model.to(job.device)
    extra_step(trainer, batch[:1])
    for _ in range(job.settings.memory_probe_steps):
        _peak(job, "train", lambda: extra_step(trainer, batch), optimizer)
    if not has_ledger(job):
        return
    measured = measure.peaks_by_phase(lambda enter: extra_step(trainer, batch, enter), job.device, job.model, optimizer)

    def step(ledger: Ledger) -> None:
        extra_step(trainer, batch, lambda phase: setattr(ledger, "phase", phase), _holding(ledger))

    points = measure.record_breakdown(job.memory, "forward", step, job.device, job.model, optimizer, measured)
    job.attempt.write_memory(points)


def _holding(ledger: Ledger) -> Callable[[dict], None]:
    """Says of a batch what a plan says of it: it is no activation, though the forward pass leaves it behind."""
    return lambda batch: ledger.hold("temporary", batch.values())


def _measure(
    job: Job,
    phase: str,
    work: Callable[[Callable[[dict], None]], object],
    optimizer: "torch.optim.Optimizer | None" = None,
) -> None:
    _peak(job, phase, lambda: work(lambda batch: None), optimizer)
    if not has_ledger(job):
        return
    measured = {phase: job.memory[phase].peak_allocated_bytes}

    def entered(ledger: Ledger) -> None:
        work(_holding(ledger))

    measure.record_breakdown(job.memory, phase, entered, job.device, job.model, optimizer, measured)


def _peak(job: Job, phase: str, work: Callable[[], object], optimizer: "torch.optim.Optimizer | None" = None) -> None:
    # A GPU's allocator has counted along for free while the phase ran.
    if job.device.type == "cpu":
        held_bytes = sharding.reducer_bytes(job.trainer.model_wrapped) if job.trainer is not None else 0
        measure.probe(job.memory, phase, work, job.device, job.model, optimizer, held_bytes)
