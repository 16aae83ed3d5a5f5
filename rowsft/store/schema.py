"""What a record holds, as its readers rely on it: the type of every inner value that any of them takes for granted.

Keys that are not named here may be anything, so that a record of a newer version stays readable.
"""

import json
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from rowsft.errors import shortened
from rowsft.store.files import LARGEST

_plain = with_config(ConfigDict(strict=True, extra="allow"))

State = Literal["pending", "running", "done", "failed", "oom", "interrupted"]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-LARGEST, le=LARGEST)]
Count = Annotated[int, Field(strict=True, ge=-int(LARGEST), le=int(LARGEST))]
Text = Annotated[str, Field(strict=True)]
Truth = Annotated[bool, Field(strict=True)]
Numbers = dict[Text, Number | None]


@_plain
class MethodSettings(TypedDict, total=False):
    importance: Text | None


@_plain
class Method(MethodSettings):
    name: Text


@_plain
class Named(TypedDict, total=False):
    name: Text | None
    source: Text | None
    _target_: Text


@_plain
class Trainer(TypedDict, total=False):
    learning_rate: Number


@_plain
class Config(TypedDict, total=False):
    method: Method
    model: Named
    task: Named
    budget: dict[Text, Any]
    trainer: Trainer
    seed: Count


@_plain
class Identity(TypedDict, total=False):
    method: MethodSettings
    trainer: Trainer


@_plain
class Error(TypedDict, total=False):
    type: Text | None
    message: Text | None
    traceback: Text | None
    phase: Text | None


@_plain
class PhaseMemory(TypedDict, total=False):
    kind: Text | None
    peak_allocated_bytes: Number | None
    peak_reserved_bytes: Number | None
    process_peak_bytes: Number | None
    resident_peak_bytes: Number | None
    resident_before_step_bytes: Number | None
    step_peak_new_bytes: Number | None


@_plain
class Moment(TypedDict):
    peak_bytes: Number | None
    parts: Numbers
    measured_peak_bytes: Number | None
    unattributed_bytes: Number | None


@_plain
class Memory(TypedDict, total=False):
    kind: Text | None
    load: PhaseMemory | None
    select: PhaseMemory | None
    train: PhaseMemory | None
    evaluate: PhaseMemory | None
    ledger: dict[Text, Moment] | None


@_plain
class Energy(TypedDict, total=False):
    kind: Text | None
    select_joules: Number | None
    train_joules: Number | None
    evaluate_joules: Number | None


@_plain
class Parameters(TypedDict, total=False):
    adapter: Count | None
    head: Count | None
    total_trainable: Count | None
    base: Count | None
    budget_asked: Count | None
    budget_achieved: Count | None
    budget_source: Text | None
    adapter_dtype: Text | None


@_plain
class File(TypedDict, total=False):
    path: Annotated[Text, Field(min_length=1)]
    sha256: Text | None


@_plain
class Environment(TypedDict, total=False):
    packages: dict[Text, Text | None] | None
    git_commit: Text | None


@_plain
class TaskAbout(TypedDict, total=False):
    source: Text | None
    licence: Text | None
    classes: list[Text] | None


@_plain
class ModelFacts(TypedDict, total=False):
    revision: Text | None


@_plain
class AttemptFields(TypedDict):
    attempt: Annotated[Count, Field(ge=1)]
    state: State


@_plain
class Attempt(AttemptFields, total=False):
    started_at: Text | None
    ended_at: Text | None
    error: Error | None
    seconds: Numbers | None
    step_seconds: Numbers | None
    data_seconds: Numbers | None
    energy: Energy | None
    tokens_per_second: Number | None
    train_tokens: Number | None
    train_examples: Number | None
    steps: Number | None
    memory: Memory | None
    concurrent_jobs: Count | None
    non_finite: list[Text] | None
    parameters: Parameters | None
    knobs: dict[Text, Any] | None
    metrics: dict[Text, Numbers | None] | None
    primary_metric: Text | None
    higher_is_better: Truth
    reference: dict[Text, Number | Text | None] | None
    warm_head: Numbers | None
    scores_from_cache: Truth | None
    inputs: Numbers | None
    train_loss_final: Number | None
    files: dict[Text, File] | None
    environment: Environment | None
    task_about: TaskAbout | None
    model_facts: ModelFacts | None


@_plain
class RecordFields(TypedDict):
    schema_version: Count
    id: Text
    state: State
    config: Config
    identity: Identity
    attempts: list[Attempt]


@_plain
class WholeRecord(RecordFields, total=False):
    created_at: Text | None
    # Older versions took 20261126 and true for what they look like.
    experiments: list[Text | Number | Truth] | None
    experiment_notes: dict[Text, dict[Text, Any] | None] | None


def faults(raw: object) -> str | None:
    """What is wrong with a record, in a few words that name the place and the value; None when it is whole."""
    return _faults(_adapter(WholeRecord), raw)


def config_faults(config: Mapping) -> str | None:
    """The same for a resolved configuration, before a run is recorded under it."""
    return _faults(_adapter(Config), config)


@cache
def _adapter(kind: type) -> TypeAdapter:
    return TypeAdapter(kind)


def _faults(adapter: TypeAdapter, raw: object) -> str | None:
    try:
        adapter.validate_python(raw)
    except ValidationError as error:
        found = {}
        for fault in error.errors(include_url=False, include_context=False):
            found.setdefault(_place(raw, fault["loc"]), fault)
        told = [_words(place, fault) for place, fault in list(found.items())[:3]]
        return "; ".join(told) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")
    return None


def _place(raw: object, loc: tuple) -> str:
    """The path of a value, without the names of the alternatives that pydantic tried for it."""
    walked = ""
    for step in loc:
        if isinstance(raw, list) and isinstance(step, int):
            walked, raw = f"{walked}[{step}]", raw[step]
        elif isinstance(raw, dict):
            walked, raw = f"{walked}.{step}" if walked else str(step), raw.get(step)
        else:
            break
    return walked or "the record"


def _words(place: str, fault: dict[str, Any]) -> str:
    if fault["type"] == "missing":
        return f"{place} is missing"
    if fault["type"] in ("less_than_equal", "greater_than_equal"):
        return f"{place} is {_shown(fault['input'])}, expected a number of moderate size"
    expected = fault["msg"].removeprefix("Input should be ").replace("dictionary", "mapping").replace("string", "text")
    return f"{place} is {_shown(fault['input'])}, expected {expected}"


def _shown(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**20:
        return "an integer of many digits"
    return shortened(json.dumps(value, ensure_ascii=False, default=repr))
