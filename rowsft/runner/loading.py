"""A run's data, model and processor: read, checked against each other before anything is trained, and recorded."""

import sys
from contextlib import nullcontext

from omegaconf import OmegaConf

from rowsft import measure
from rowsft.errors import UserError
from rowsft.models import capacity
from rowsft.models.loading import load
from rowsft.models.options import check_autocast
from rowsft.output import escape, redact
from rowsft.progress import bar
from rowsft.runner import memory_probe
from rowsft.runner.context import Job
from rowsft.store.token_cache import TokenCache
from rowsft.tasks.base import SplitTask
from rowsft.tasks.token_caching import kept

# Examples between two moves of the tokenising bar.
ENCODED_AT_ONCE = 1000


def load_all(job: Job) -> None:
    """Fill in the job's splits, model and encoded training examples, on its device; say and record what they are."""
    config = OmegaConf.create(job.spec.config)
    job.say(f"loading {config.model.name} and {config.task.name}")
    # A GPU's allocator counts along; a CPU's is asked where memory is measured at all.
    on_cpu = memory_probe.wanted(job) and job.device.type == "cpu"
    peak = measure.AllocationPeak(job.device) if on_cpu else None
    with measure.watched(job.memory, "load", job.device, job.gpu):
        with job.clock.phase("data"):
            job.splits = job.task.splits()
            if job.settings.evaluate_every is not None and not job.splits.get("validation"):
                raise UserError(
                    f"trainer.evaluate_every={job.settings.evaluate_every}: task {job.task.name} has no validation "
                    "split; give it one, or set trainer.evaluate_every=null"
                )
        with job.clock.phase("load"), peak or nullcontext():
            job.loaded = load(config.model, job.task.head, job.task.head_settings(), seed=job.seed)
            check_autocast(job.loaded.model.config, job.settings.autocast)
            capacity.check_length(job.loaded.model, job.task.max_length)
            job.task.check_model(job.loaded.model)
            if job.loaded.tokenizer is not None:
                capacity.check_padding(job.loaded.tokenizer, config.model.source)
            job.model = job.loaded.model.to(job.whole_device)  # type: ignore[arg-type]  # its wrapper loses self
        with job.clock.phase("data"):
            if isinstance(job.task, SplitTask):
                job.task.keep_tokens(TokenCache(job.spec.store))
            watched = ["validation"] if job.settings.evaluate_every is not None else []
            job.task.limit_lengths(job.loaded.processor, ["train", *job.settings.evaluate, *watched])
            job.splits = job.task.splits()
            job.encoded = _encode(job, job.splits["train"])
            _check_tokens(job)
    # What loading leaves behind: the loader's own threads escape a ledger, and only the resident set shows them.
    if peak is not None:
        job.memory.enter("load", job.memory["load"].changed(peak_allocated_bytes=peak.new_peak_bytes))
    if memory_probe.has_ledger(job):
        measured = {"load": job.memory["load"].peak_allocated_bytes}
        measure.record_breakdown(job.memory, "load", lambda ledger: None, job.device, job.model, measured=measured)
    about = job.task.about()
    job.attempt.update(
        task_about=about,
        model_facts=job.loaded.facts,
        primary_metric=job.task.primary_metric,
        higher_is_better=job.task.higher_is_better,
    )
    sizes = ", ".join(f"{len(examples)} {name}" for name, examples in job.splits.items())
    job.say(f"  {job.model.num_parameters():,} parameters; examples: {sizes}")
    for text in about.get("warnings", []) if job.ranks.is_first else ():
        print(f"rowsft: warning: {escape.terminal(redact.text(text))}", file=sys.stderr)


def _encode(job: Job, examples: list[dict]) -> list[dict]:
    def anew() -> list[dict]:
        encoded: list[dict] = []
        for first in bar("tokenising")(range(0, len(examples), ENCODED_AT_ONCE)):
            encoded += job.task.encode(examples[first : first + ENCODED_AT_ONCE], job.loaded.processor)
        return encoded

    # Running text is cut into windows within what is encoded at once.
    what = f"encode, {ENCODED_AT_ONCE} at once"
    return kept(getattr(job.task, "token_cache", None), job.task, job.loaded.processor, examples, what, anew)


def _check_tokens(job: Job) -> None:
    """Refuse texts without tokens and tokens without embeddings, in every split that the run will use."""
    model, tokenizer = job.loaded.model, job.loaded.tokenizer
    if tokenizer is None:
        return
    source = job.spec.config["model"]["source"]

    def check(split: str, encoded: list[dict]) -> None:
        capacity.check_encoded(model, tokenizer, source, split, job.splits[split], encoded)

    check("train", job.encoded)
    spare = capacity.spare_tokens(model, tokenizer)
    if spare:
        capacity.check_pad_id(model, tokenizer, source)
    if spare or job.task.may_encode_nothing(tokenizer):
        # Encoded once more for evaluation: only where it might fail then, with the training lost.
        for split in job.settings.evaluate:
            if split != "train":
                check(split, _encode(job, job.splits[split]))
    if spare:
        job.say(f"  warning: the tokenizer has {spare:,} ids more than the embeddings have rows; no text uses them")
