"""The parts of a record. Names carry their units; None means not measured, never zero."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, WrapValidator

from rowsft.record.configuration import Config, Identity, as_it_is
from rowsft.record.forgetting import Forgetting
from rowsft.record.memory import Memory, RanksRecord
from rowsft.record.optimization import Optimization
from rowsft.record.part import NOTHING, Count, Number, Part, Text, Truth

State = Literal["pending", "running", "done", "failed", "oom", "interrupted"]
Numbers = dict[Text, Number | None]


@dataclass(frozen=True, kw_only=True)
class Error(Part):
    """Why an attempt has no result; `phase` is where it came up."""

    type: Text | None = None
    message: Text | None = None
    traceback: Text | None = None
    phase: Text | None = None


@dataclass(frozen=True, kw_only=True)
class Seconds(Part):
    """Wall-clock seconds by phase of a run, and of all of it."""

    others: ClassVar[Any] = Number | None
    data: Number | None = None
    load: Number | None = None
    select: Number | None = None
    attach: Number | None = None
    train: Number | None = None
    evaluate: Number | None = None
    save: Number | None = None
    measure: Number | None = None
    total: Number | None = None


@dataclass(frozen=True, kw_only=True)
class Spread(Part):
    """Statistics of seconds, one value a step, over the steps after warm-up."""

    others: ClassVar[Any] = Number | None
    min: Number | None = None
    p25: Number | None = None
    median: Number | None = None
    p75: Number | None = None
    p95: Number | None = None
    max: Number | None = None
    mean: Number | None = None


@dataclass(frozen=True, kw_only=True)
class StepSeconds(Spread):
    """Seconds of an optimizer step, the wait for its data left out."""

    warmup_steps: Number | None = None
    timed_steps: Number | None = None


@dataclass(frozen=True, kw_only=True)
class DataSeconds(Spread):
    """Seconds that a step waited for its data; `total` is over all steps."""

    total: Number | None = None


@dataclass(frozen=True, kw_only=True)
class Energy(Part):
    """Joules by phase, as the counter named by `kind` has them."""

    kind: Text | None = None
    select_joules: Number | None = None
    train_joules: Number | None = None
    evaluate_joules: Number | None = None


@dataclass(frozen=True, kw_only=True)
class Parameters(Part):
    """Numbers of parameters. `head` is trained by every method alike and outside the budget."""

    adapter: Count | None = None
    head: Count | None = None
    total_trainable: Count | None = None
    base: Count | None = None
    budget_asked: Count | None = None
    budget_achieved: Count | None = None
    budget_source: Text | None = None
    adapter_dtype: Text | None = None


@dataclass(frozen=True, kw_only=True)
class WarmHead(Part):
    """The training of a task head before scoring."""

    others: ClassVar[Any] = Number | None
    steps: Number | None = None
    loss_first: Number | None = None
    loss_last: Number | None = None


@dataclass(frozen=True, kw_only=True)
class Calibrated(Part):
    """Under trainer.calibration_overlap: the batches that the choice is made from, and what it had in common with that
    from half as many."""

    batches: Count | None = None
    overlap: Number | None = None


@dataclass(frozen=True, kw_only=True)
class Inputs(Part):
    """Layers by how backward had their input in the last training step: computed again, or kept."""

    others: ClassVar[Any] = Number | None
    rebuilt: Number | None = None
    kept: Number | None = None


@dataclass(frozen=True, kw_only=True)
class Resumed(Part):
    """Where an attempt went on: after optimizer step `step` of an earlier one; `times` counts all its restarts.

    Its seconds, steps, tokens and curve are those of all its pieces, each up to the checkpoint that the next came from.
    """

    attempt: Count | None = None
    step: Count | None = None
    times: Count | None = None


@dataclass(frozen=True, kw_only=True)
class File(Part):
    """A file or folder of the attempt: its path in the run's folder, and its sha256."""

    path: Annotated[Text, Field(min_length=1)] | None = None
    sha256: Text | None = None


@dataclass(frozen=True, kw_only=True)
class Environment(Part):
    """What a result depends on beside its configuration."""

    packages: dict[Text, Text | None] = NOTHING
    git_commit: Text | None = None
    git_dirty: Any = None
    hardware: Any = None
    threads: Any = None
    os: Any = None
    seeds: Any = None


@dataclass(frozen=True, kw_only=True)
class TaskAbout(Part):
    """What a task says of its data; tasks add keys of their own."""

    open: ClassVar[bool] = True
    source: Text | None = None
    licence: Text | None = None
    classes: list[Text] | None = None


@dataclass(frozen=True, kw_only=True)
class ModelFacts(Part):
    """What is known of a loaded base model; loaders add keys of their own."""

    open: ClassVar[bool] = True
    revision: Text | None = None


@dataclass(frozen=True, kw_only=True)
class Alone(Part):
    """Step times and memory measured again in a process with no other job beside it, from the trained adapter.

    Nothing was trained: the steps had a learning rate of 0.
    """

    measured_at: Text | None = None
    environment: Environment = Environment()
    concurrent_jobs: Count | None = None
    steps: Number | None = None
    tokens_per_second: Number | None = None
    step_seconds: StepSeconds = StepSeconds()
    data_seconds: DataSeconds = DataSeconds()
    memory: Memory = Memory()


@dataclass(frozen=True, kw_only=True)
class HarnessResult(Part):
    """One task of lm-evaluation-harness on the model that the attempt has made.

    metrics: under the harness's names, such as acc,none and acc_stderr,none. The hashes are sha256: of the task's
    configuration without where its data lie, of its data sets' documents and of the prompts, in order. limit: the most
    documents that were asked for; examples: how many it were. adapter_difference: the largest difference of a logit
    from the base model's on fixed tokens; merged_difference: that between merged and unmerged, merged_tolerance what it
    may be. main_metric: the key in `metrics` of the task's own first metric. part_of: the group that it was evaluated
    for. samples: the file of its examples' metrics; a group has none.
    """

    task: Text
    part_of: Text | None = None
    evaluated_at: Text | None = None
    harness_version: Text | None = None
    task_version: Text | None = None
    config_sha256: Text | None = None
    documents_sha256: Text | None = None
    prompts_sha256: Text | None = None
    limit: Count | None = None
    examples: Count | None = None
    examples_available: Count | None = None
    shots: Count | None = None
    batch_size: Count | None = None
    autocast: Text | None = None
    adds_bos: Truth | None = None
    main_metric: Text | None = None
    metrics: dict[Text, Number | None] = NOTHING
    higher_is_better: dict[Text, Truth | None] = NOTHING
    samples: File = File()
    seconds: Number | None = None
    command: Text | None = None
    adapter_difference: Number | None = None
    merged_difference: Number | None = None
    merged_tolerance: Number | None = None
    environment: Environment = Environment()


@dataclass(frozen=True, kw_only=True)
class Attempt(Part):
    """One try at a run. Times are ISO 8601 in UTC."""

    attempt: Annotated[Count, Field(ge=1)]
    state: State
    started_at: Text | None = None
    ended_at: Text | None = None
    error: Error | None = None
    pid: Any = None
    environment: Environment = Environment()
    concurrent_jobs: Count | None = None
    task_about: TaskAbout = TaskAbout()
    model_facts: ModelFacts = ModelFacts()
    primary_metric: Text | None = None
    higher_is_better: Truth = True
    # Read by rowsft/method_info.py, to which a damaged one counts as absent.
    method_info: Any = None
    resolved: dict[Text, Any] = NOTHING
    parameters: Parameters = Parameters()
    scores_from_cache: Truth | None = None
    calibrated: Calibrated = Calibrated()
    warm_head: WarmHead = WarmHead()
    optimization: Optimization = Optimization()
    inputs: Inputs = Inputs()
    resumed: Resumed = Resumed()
    alone: Alone = Alone()
    ranks: RanksRecord = RanksRecord()
    steps: Number | None = None
    train_tokens: Number | None = None
    train_examples: Number | None = None
    tokens_per_second: Number | None = None
    train_loss_final: Number | None = None
    metrics: dict[Text, Numbers | None] = NOTHING
    reference: dict[Text, Number | Text | None] = NOTHING
    forgetting: Forgetting = Forgetting()
    seconds: Seconds = Seconds()
    step_seconds: StepSeconds = StepSeconds()
    data_seconds: DataSeconds = DataSeconds()
    # Part of seconds.train, and of no step's.
    checkpoint_seconds: Number | None = None
    validation_seconds: Number | None = None
    energy: Energy = Energy()
    memory: Memory = Memory()
    # One after the other as they were asked for; none takes the place of another.
    lm_eval: list[HarnessResult] | None = None
    files: dict[Text, File] = NOTHING
    non_finite: list[Text] | None = None


@dataclass(frozen=True, kw_only=True)
class RecordFile(Part):
    """The whole of a record.json."""

    schema_version: Count
    id: Text
    state: State
    created_at: Text | None = None
    # Older versions took 20261126 and true for what they look like.
    experiments: list[Text | Number | Truth] | None = None
    experiment_notes: dict[Text, dict[Text, Any] | None] = NOTHING
    config: Annotated[Config, WrapValidator(as_it_is)]
    identity: Annotated[Identity, WrapValidator(as_it_is)]
    attempts: list[Attempt]
