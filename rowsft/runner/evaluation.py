"""A run's evaluation: every split that is asked for, and the reference metrics of the untrained model."""

import torch

from rowsft.progress import bar
from rowsft.runner.context import Job
from rowsft.tasks import Evaluation, Task


def evaluate(job: Job) -> None:
    """Record metrics and predictions of the splits in trainer.evaluate, and the reference where there is one.

    Of several processes the first evaluates all examples; a sharded model's forward takes all processes, and they go
    through the same batches together.
    """
    if not takes_part(job):
        return
    metrics, predictions = {}, []
    with job.clock.phase("evaluate"), job.metered("evaluate"):
        for split in job.settings.evaluate:
            result = evaluate_examples(job, job.splits[split], f"evaluating {split}")
            metrics[split] = result.metrics
            predictions += [{"split": split, **row} for row in result.predictions]
            numbers = ", ".join(f"{name} {value:.4f}" for name, value in result.metrics.items())
            job.say(f"  {split}: {numbers}")
    job.attempt.update(metrics=metrics)
    job.attempt.write_predictions(predictions)
    # Only where the base model is still the untouched one can it give the reference.
    if job.method.trainable(job.model)["adapter"] == 0 and "test" in job.settings.evaluate:
        with job.clock.phase("measure"):
            reference = job.task.reference_metrics(job.model, job.splits["test"], job.loaded.processor)
        job.attempt.update(reference=reference)


def takes_part(job: Job) -> bool:
    """Whether this process evaluates: the first, and all where each has a part of the weights."""
    return job.ranks.is_first or job.ranks.is_sharded


def evaluate_examples(
    job: Job, examples: list[dict], title: str | None, task: Task | None = None, batch_size: int | None = None
) -> Evaluation:
    """Evaluate under the run's autocast; `title` is that of the bar, None for no bar.

    task, batch_size: other ones than the run's own.
    """
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16, None: None}
    kind = kinds[job.settings.autocast]
    with torch.autocast(job.device.type, dtype=kind, enabled=kind is not None):
        return (task or job.task).evaluate(
            job.model,
            examples,
            job.loaded.processor,
            batch_size or job.settings.eval_batch_size,
            progress=bar(title) if title else None,
        )
