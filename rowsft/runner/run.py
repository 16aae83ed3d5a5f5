"""One run, top to bottom, by the same code for every method: load, select, attach, train, evaluate, save, record."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from omegaconf import OmegaConf

from rowsft import measure
from rowsft.config.instantiate import bad_input, instantiated
from rowsft.config.run_spec import RunSpec
from rowsft.config.settings import TrainerSettings
from rowsft.importance.calibration import Calibration
from rowsft.importance.recomputing import recomputing
from rowsft.method_info import info_of, to_record
from rowsft.methods.base import calibrating, method_of, selected
from rowsft.models import capacity
from rowsft.models.checkpoint import write_checkpoint
from rowsft.models.loading import load, targets_of
from rowsft.progress import bar
from rowsft.runner import memory_probe
from rowsft.runner import trainer as training
from rowsft.runner.calibration import TrainingBatches
from rowsft.runner.context import Job, Outcome
from rowsft.runner.head_warmup import warmed_head
from rowsft.selection.budget import Budget
from rowsft.store import Store
from rowsft.store.attempt import error_fields, state_of
from rowsft.tasks import Task
from rowsft.tracking.tracker import Tracker, final_numbers, tracking

# Examples between two moves of the tokenising bar.
ENCODED_AT_ONCE = 1000


def run(spec: RunSpec, settings: TrainerSettings, rerun: bool, say: Callable[[str], None]) -> Outcome:
    """Run what `spec` describes, or return the recorded outcome if it was done before and `rerun` is false.

    A run that fails, runs out of memory or is interrupted leaves a record that says so; the outcome carries its state.
    Bad input is raised as UserError: before training it leaves no trace in the store, later a failure.
    """
    parts = _build(spec)
    clock = measure.PhaseClock(training.device_of(settings))
    if rerun or not Store(spec.store).is_done(spec.run_id):
        _read_ahead(parts["task"], clock)
    with Store(spec.store).open(spec.config) as folder:
        done = folder.record.result
        if done and not rerun:
            return Outcome(spec.run_id, folder.path, "done", done["metrics"], "done already (--rerun repeats it)")
        attempt = folder.begin(
            environment=measure.collect({"seed": spec.config["seed"]}),
            concurrent_jobs=int(os.environ.get("ROWSFT_CONCURRENT_JOBS", 1)),
            method_info=to_record(info_of(parts["method"])),
        )
        job = Job(spec, settings, attempt, say, clock=clock, **parts)
        try:
            _perform(job)
        except BaseException as error:
            mistake = bad_input(error)
            if mistake is not None and job.trainer is None:
                # Nothing was trained: a mistake in settings, data or model folder is no result to keep.
                folder.withdraw()
                raise mistake from error
            state = _close(job, error)
            if not isinstance(error, Exception):
                raise
            if mistake is not None:
                raise mistake from error
            return Outcome(spec.run_id, folder.path, state, {}, f"{type(error).__name__}: {error}")
        return Outcome(spec.run_id, folder.path, "done", folder.record.result["metrics"])


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
    with tracking(job.tracker, run_id, job.spec.config, job.spec.experiment):
        for step in (_load, _select, _attach, _train, _evaluate, _save, _probe_memory):
            step(job)
            # What kills a process for its memory lets it write nothing more.
            job.attempt.update(memory=job.memory)
        job.attempt.update(**_costs(job))
        job.tracker.summary(final_numbers(job.attempt.fields))
    job.attempt.finish("done")


def _build(spec: RunSpec) -> dict[str, Any]:
    """Method, task, budget and tracker as the configuration describes them. Reads no data."""
    config = OmegaConf.create(spec.config)
    return {
        "method": method_of(config.method),
        "task": instantiated("task", config.task, Task),
        "tracker": instantiated("tracker", config.tracker, Tracker),
        "budget": Budget(**spec.config["budget"]),
    }


def _load(job: Job) -> None:
    config = OmegaConf.create(job.spec.config)
    job.say(f"loading {config.model.name} and {config.task.name}")
    # A GPU's allocator counts along; a CPU's is asked where memory is measured at all.
    asked = memory_probe.wanted(job) and job.device.type == "cpu"
    peak = measure.AllocationPeak(job.device) if asked else None
    with measure.watched(job.memory, "load", job.device, job.gpu):
        with job.clock.phase("data"):
            job.splits = job.task.splits()
        with job.clock.phase("load"), peak or nullcontext():
            job.loaded = load(
                config.model,
                job.task.head,
                job.task.num_labels,
                problem_type=getattr(job.task, "problem_type", None),
                seed=job.seed,
            )
            capacity.check_length(job.loaded.model, config.task.get("max_length"))
            capacity.check_padding(job.loaded.tokenizer, config.model.source)
            job.model = job.loaded.model.to(job.device)
        with job.clock.phase("data"):
            job.encoded = _encode(job, job.splits["train"])
            _check_tokens(job)
    # What loading leaves behind: the loader's own threads escape a ledger, and only the resident set shows them.
    if peak is not None:
        job.memory["load"]["peak_allocated_bytes"] = peak.new_peak_bytes
    measured = {"load": job.memory["load"]["peak_allocated_bytes"]}
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
    for text in about.get("warnings", []):
        print(f"rowsft: warning: {text}", file=sys.stderr)


@contextmanager
def _metered(job: Job, phase: str) -> Iterator[None]:
    """Enter the memory of the block, and its energy where a GPU counts it."""
    with (
        measure.watched(job.memory, phase, job.device, job.gpu),
        measure.energy_of(job.energy, phase, job.device, job.gpu),
    ):
        yield


def _costs(job: Job) -> dict:
    """The record's seconds and memory; its energy only where there is one."""
    return {"seconds": job.clock.summary(), "memory": job.memory, **({"energy": job.energy} if job.energy else {})}


def _encode(job: Job, examples: list[dict]) -> list[dict]:
    encoded: list[dict] = []
    for first in bar("tokenising")(range(0, len(examples), ENCODED_AT_ONCE)):
        encoded += job.task.encode(examples[first : first + ENCODED_AT_ONCE], job.loaded.tokenizer)
    return encoded


def _check_tokens(job: Job) -> None:
    """Refuse texts without tokens and tokens without embeddings, in every split that the run will use."""
    model, tokenizer = job.loaded.model, job.loaded.tokenizer
    source = job.spec.config["model"]["source"]

    def check(split: str, encoded: list[dict]) -> None:
        capacity.check_encoded(model, tokenizer, source, split, job.splits[split], encoded)

    check("train", job.encoded)
    spare = capacity.spare_tokens(model, tokenizer)
    if spare:
        capacity.check_pad_id(model, tokenizer, source)
    if spare or capacity.may_give_nothing(tokenizer, job.task.head):
        # Encoded once more for evaluation: only where it might fail then, with the training lost.
        for split in job.settings.evaluate:
            if split != "train":
                check(split, _encode(job, job.splits[split]))
    if spare:
        job.say(f"  warning: the tokenizer has {spare:,} ids more than the embeddings have rows; no text uses them")


def _select(job: Job) -> None:
    """Solve the budget and choose what to train. Only training data are shown to the importance metric."""
    targets = targets_of(job.spec.config["model"], job.task.head)
    with job.clock.phase("select"):
        job.resolved = job.method.solve(job.budget, job.model, targets)
        calibration = _calibration(job) if calibrating(job.method) else None
        sizes, recompute = job.resolved, job.settings.gradient_checkpointing and bool(calibration)
        with _metered(job, "select"), recomputing(job.model, recompute):
            job.resolved = selected(job.method, job.model, sizes, calibration or ())
    if calibration:
        job.attempt.update(scores_from_cache=calibration.was_read)
        if calibration.was_read and not (memory_probe.wanted(job) and job.device.type == "cpu"):
            # Nothing was scored, so nothing was measured; on a CPU the probe below scores once more.
            job.memory["select"] = None
        if memory_probe.wanted(job):
            with job.clock.phase("measure"):
                memory_probe.selection(job, sizes, calibration)
    _say_budget(job)


def _attach(job: Job) -> None:
    with job.clock.phase("attach"):
        transformers.set_seed(job.seed)
        job.model = job.method.attach(job.model, job.resolved)
        counts = job.method.trainable(job.model)
        job.attempt.update(
            knobs=job.resolved.values,
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


def _train(job: Job) -> None:
    if not job.method.trains:
        return
    clock = measure.StepClock(job.settings.timing_warmup_steps, job.device)
    with job.attempt.scratch() as scratch, job.clock.phase("train"):
        job.trainer = training.build_trainer(
            job.model,
            job.encoded,
            job.task.collator(job.loaded.tokenizer, job.model),
            job.settings,
            job.seed,
            clock,
            lambda point: job.tracker.log(point["step"], {f"train/{k}": v for k, v in point.items() if k != "step"}),
            scratch,
            normalises_by_tokens=job.task.head == "causal_lm",
        )
        per_step = job.settings.batch_size * job.settings.gradient_accumulation
        job.say(f"  training for {job.trainer.args.max_steps} steps of {per_step}")
        with _metered(job, "train"):
            job.trainer.train()
    curve = job.trainer.curve
    job.attempt.update(**clock.summary(), train_loss_final=curve[-1]["loss"], **_inputs(job.model))
    job.attempt.write_curve(curve)
    job.curve_written = True


def _inputs(model: torch.nn.Module) -> dict:
    """How many layers had their input computed again in backward, and how many kept it; of a method that says so."""
    sources = getattr(model.base_model, "input_sources", None)
    if sources is None:
        return {}
    told = list(sources().values())
    rebuilt = sum(source.startswith("rebuilt") for source in told)
    return {"inputs": {"rebuilt": rebuilt, "kept": len(told) - rebuilt}}


def _evaluate(job: Job) -> None:
    metrics, predictions = {}, []
    with job.clock.phase("evaluate"), _metered(job, "evaluate"):
        for split in job.settings.evaluate:
            result = _evaluate_examples(job, job.splits[split], f"evaluating {split}")
            metrics[split] = result.metrics
            predictions += [{"split": split, **row} for row in result.predictions]
            numbers = ", ".join(f"{name} {value:.4f}" for name, value in result.metrics.items())
            job.say(f"  {split}: {numbers}")
    job.attempt.update(metrics=metrics)
    job.attempt.write_predictions(predictions)
    # Only where the base model is still the untouched one can it give the reference.
    if job.method.trainable(job.model)["adapter"] == 0 and "test" in job.settings.evaluate:
        with job.clock.phase("measure"):
            reference = job.task.reference_metrics(job.model, job.splits["test"], job.loaded.tokenizer)
        job.attempt.update(reference=reference)


def _save(job: Job) -> None:
    with job.clock.phase("save"):
        if job.method.trains:
            job.attempt.write_folder("adapter", lambda folder: _write_trained(job, folder))


def _write_trained(job: Job, folder: Path) -> None:
    if job.method.saves_checkpoint:
        write_checkpoint(job.model, job.loaded.tokenizer, job.task.about().get("classes"), folder)
    else:
        job.method.save(job.model, folder)


def _probe_memory(job: Job) -> None:
    if not memory_probe.wanted(job):
        return
    with job.clock.phase("measure"):
        memory_probe.evaluation(job, lambda examples: _evaluate_examples(job, examples, None))
        memory_probe.training_step(job)


def _evaluate_examples(job: Job, examples: list[dict], title: str | None):
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    kind = kinds.get(job.settings.autocast)
    with torch.autocast(job.device.type, dtype=kind, enabled=kind is not None):
        return job.task.evaluate(
            job.model,
            examples,
            job.loaded.tokenizer,
            job.settings.eval_batch_size,
            progress=bar(title) if title else None,
        )


def _calibration(job: Job) -> Calibration:
    collate = job.task.collator(job.loaded.tokenizer, job.model)
    batches = TrainingBatches(job.encoded, collate, job.settings, job.seed, job.device)
    # A repetition measures what the first attempt did, scoring too.
    again, revision = job.attempt.number > 1, job.loaded.revision
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


def _close(job: Job, error: BaseException) -> str:
    """Record how the run ended, with what was measured up to there; returns its state."""
    job.attempt.update(**_costs(job))
    if job.trainer is not None and job.trainer.curve and not job.curve_written:
        job.attempt.write_curve(job.trainer.curve)
    job.attempt.finish(state_of(error), error=error_fields(error, job.clock.phase_name))
    return state_of(error)
