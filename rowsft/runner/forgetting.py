"""What a run has forgotten of a general text (`trainer.forgetting`): two passes over it, once the result is saved.

Outside of training's peak and clock, and of evaluation's: they are part of the phase `measure`.
"""

import shutil
import time
from contextlib import nullcontext
from dataclasses import asdict

from peft import PeftModel
from torch import Tensor

from rowsft.methods import weight_change
from rowsft.models import capacity
from rowsft.models.loading import targets_of
from rowsft.record import Forgetting
from rowsft.runner.context import Job
from rowsft.runner.evaluation import evaluate_examples
from rowsft.runner.originals import Originals
from rowsft.tasks import Evaluation
from rowsft.tasks.general_text import GeneralText, named_by


def read_text(job: Job) -> None:
    """Read the text, where one is asked for; of several processes the first does so, which alone measures.

    Raises UserError for a text that cannot be read, and for a task of another kind of model.
    """
    text = named_by(asdict(job.settings.forgetting), job.task) if job.ranks.is_first else None
    if text is None:
        return
    with job.clock.phase("data"):
        # Before the model is loaded: a mistake in it costs little.
        text.read()
    job.general_text = text


def keep_originals(job: Job) -> None:
    """Check that the attached model can read the text, and keep on disk what training will change in place.

    Raises UserError for windows longer than the model's positions, and for layers whose change cannot be told.
    """
    text, loaded = job.general_text, job.loaded
    if text is None:
        return
    capacity.check_length(loaded.model, text.max_length, "trainer.forgetting.max_length")
    with job.clock.phase("data"):
        encoded = text.encode(text.examples, loaded.processor)
        source = job.spec.config["model"]["source"]
        capacity.check_encoded(loaded.model, loaded.processor, source, "forgetting", text.examples, encoded)
    if isinstance(job.model, PeftModel):
        # For what it refuses: the layers are asked for when they are measured.
        weight_change.of_adapter(job.model)
    elif job.method.trains:
        folder = job.attempt.path / ".originals.tmp"
        job.until_end.callback(shutil.rmtree, folder, ignore_errors=True)
        with job.clock.phase("save"):
            job.originals = Originals(job.model, folder)


def measure(job: Job) -> None:
    """Record the text's loss under the untouched and the tuned model, and CSD_rel of every adapted layer."""
    text = job.general_text
    if text is None:
        return
    begin = time.perf_counter()
    with job.clock.phase("measure"):
        targets = targets_of(job.spec.config["model"], job.task.head)
        tuned = job.originals.put_back() if job.originals else nullcontext(Tensor.detach)
        with (
            weight_change.untouched(job.model, targets, tuned) as layers,
            weight_change.watched(layers, lambda: text.counted) as sums,
        ):
            before = _evaluated(job, text, "general text, untouched model")
        after = _evaluated(job, text, "general text, tuned model") if job.method.trains else before
    whole = weight_change.total(sums)
    job.attempt.update(
        forgetting=Forgetting(
            source=text.path,
            sha256=text.sha256,
            examples=len(before.predictions),
            tokens=sum(row["tokens"] for row in before.predictions),
            before={**before.metrics},
            after={**after.metrics},
            csd_rel=whole.csd_rel,
            csd_rel_layers={name: each.csd_rel for name, each in sums.items()},
            seconds=time.perf_counter() - begin,
        )
    )
    losses = f"{before.metrics['loss']:.4f} before, {after.metrics['loss']:.4f} after"
    shown = "" if whole.csd_rel is None else f", CSD_rel {whole.csd_rel:.3g}"
    job.say(f"  forgetting: loss of the general text {losses}{shown}")


def _evaluated(job: Job, text: GeneralText, title: str) -> Evaluation:
    return evaluate_examples(job, text.examples, title, text, job.settings.forgetting.batch_size)
