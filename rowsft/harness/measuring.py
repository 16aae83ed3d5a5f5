"""lm-evaluation-harness called on a model in memory: tasks loaded once, results as parts of a record."""

import difflib
import hashlib
import io
import json
import logging
import math
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from importlib.metadata import version
from typing import Any, NamedTuple

import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from rowsft import measure
from rowsft.errors import UserError, shortened
from rowsft.harness.adapted import Adapted
from rowsft.harness.samples import by_document
from rowsft.harness.settings import Settings
from rowsft.record import Environment, HarnessResult
from rowsft.store.record import now
from rowsft.tasks.evaluating import evaluation_mode

_AUTOCAST = {"bf16": "bfloat16", "fp16": "float16", None: None}
# What the harness draws for standard errors; its own default takes minutes.
_BOOTSTRAPS = 1000
# Of a task's configuration: where its data lie, which documents_sha256 stands for.
_PLACES = ("dataset_kwargs", "dataset_path", "metadata")


class Evaluated(NamedTuple):
    """A task's result, and its examples as `by_document` gives them."""

    result: HarnessResult
    samples: list[dict[str, Any]]


class Tasks:
    """The tasks of `settings`. Raises UserError for a name that the harness does not know."""

    def __init__(self, settings: Settings):
        self.settings = settings
        # The harness's own tasks take ten seconds to list: not where all are in the user's folder.
        self.manager = _manager(settings, include_defaults=settings.include_path is None)
        if settings.include_path is not None and not set(settings.tasks) <= set(self.manager.all_tasks):
            self.manager = _manager(settings, include_defaults=True)
        known = self.manager.all_tasks
        for name in settings.tasks:
            if name not in known:
                close = ", ".join(difflib.get_close_matches(name, known, 3)) or "lm_eval ls tasks lists them"
                raise UserError(
                    f"--lm-eval {shortened(name)}: the harness knows no such task; close: {close}; tasks of your own: "
                    "--include-path"
                )

    def evaluated(self, adapted: Adapted) -> list[Evaluated]:
        """Return what every task (and group that has a result) gave on a model, whose modes stay as they were.

        Raises UserError for data that cannot be loaded, and for a tokenizer that the harness would misread.
        """
        _check_tokenizer(adapted)
        started = time.monotonic()
        with evaluation_mode(adapted.model), _quiet():
            model: Any = HFLM(
                pretrained=adapted.model,
                tokenizer=adapted.tokenizer,
                batch_size=self.settings.batch_size,
                mixed_precision_dtype=_AUTOCAST[adapted.autocast],
            )
            try:
                found: Any = lm_eval.simple_evaluate(
                    model=model,
                    tasks=list(self.settings.tasks),
                    task_manager=self.manager,
                    batch_size=self.settings.batch_size,
                    limit=self.settings.limit,
                    log_samples=True,
                    bootstrap_iters=_BOOTSTRAPS,
                )
            except (OSError, ValueError, KeyError, LookupError, ConnectionError) as error:
                names = ",".join(self.settings.tasks)
                raise UserError(
                    f"--lm-eval {names}: {type(error).__name__}: {shortened(error, 300)}; without a network, name "
                    "tasks on local files with --include-path (docs/evaluation.md)"
                ) from error
        assert found is not None, "one process evaluates alone"
        seconds = time.monotonic() - started
        numbers = {name: _numbers(values) for name, values in found["results"].items()}
        return [
            Evaluated(self._result(adapted, name, found, numbers, seconds), by_document(found["samples"].get(name, [])))
            for name in numbers
            if numbers[name]
        ]

    def _result(self, adapted: Adapted, name: str, found: Any, numbers: dict, seconds: float) -> HarnessResult:
        inside = found["group_subtasks"]
        samples = [
            sample
            for task in _tasks_of(name, inside)
            for sample in sorted(found["samples"].get(task, []), key=lambda one: (one["filter"], one["doc_id"]))
        ]
        groups = (group for group in inside if numbers.get(group) and name in _below(group, inside))
        counts = found["n-samples"].get(name, {})
        task_version, shots = found["versions"].get(name), found["n-shot"].get(name)
        return HarnessResult.of(
            task=name,
            part_of=None if name in self.settings.tasks else next(groups, None),
            evaluated_at=now(),
            harness_version=version("lm_eval"),
            task_version=None if task_version is None else str(task_version),
            config_sha256=_config_hash(found["configs"].get(name)),
            documents_sha256=_together(sample["doc_hash"] for sample in samples),
            prompts_sha256=_together(json.dumps(sample["arguments"], default=str) for sample in samples),
            limit=self.settings.limit,
            examples=counts.get("effective"),
            examples_available=counts.get("original"),
            shots=shots if isinstance(shots, int) else None,
            batch_size=self.settings.batch_size,
            autocast=adapted.autocast,
            adds_bos=_adds_bos(adapted.tokenizer),
            main_metric=_main(numbers[name], found["configs"].get(name)),
            # A metric that has no value, or no standard error, is said to be N/A.
            metrics={key: value if _is_number(value) else None for key, value in numbers[name].items()},
            higher_is_better=dict(found["higher_is_better"].get(name) or {}),
            seconds=seconds,
            command=self.settings.command,
            adapter_difference=adapted.checks.adapter_difference,
            merged_difference=adapted.checks.merged_difference,
            merged_tolerance=adapted.checks.tolerance,
            environment=Environment.of(**measure.collect({})),
        )


def _manager(settings: Settings, include_defaults: bool) -> TaskManager:
    folder = None if settings.include_path is None else str(settings.include_path)
    with _quiet():
        return TaskManager(include_path=folder, include_defaults=include_defaults)


def _check_tokenizer(adapted: Adapted) -> None:
    """Refuse a tokenizer that ends every text with a token: the harness would take it for a part of the prompt."""
    tokenizer = adapted.tokenizer
    ids = tokenizer("a")["input_ids"]
    if len(ids) > 1 and ids[-1] in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        raise UserError(
            f"run {adapted.run_id}: its tokenizer puts {tokenizer.convert_ids_to_tokens(ids[-1])} at the end of every "
            "text, where the harness looks for the answer; save the tokenizer without it (add_eos_token: false)"
        )


def _adds_bos(tokenizer: Any) -> bool:
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    """A task's metrics with their standard errors; what else the harness puts there has no filter in its name."""
    return {key: value for key, value in values.items() if "," in key}


def _main(numbers: dict[str, Any], config: dict | None) -> str | None:
    """The key of the metric that the task's configuration lists first; without a list, of the first result."""
    listed = [str(metric.get("metric")) for metric in (config or {}).get("metric_list") or []]
    keys = [key for key in numbers if not key.partition(",")[0].endswith("_stderr")]
    return next((key for name in listed for key in keys if key.partition(",")[0] == name), next(iter(keys), None))


def _below(group: str, inside: dict[str, list[str]]) -> list[str]:
    """All tasks and groups in a group, at any depth."""
    return [name for child in inside.get(group, []) for name in (child, *_below(child, inside))]


def _tasks_of(name: str, inside: dict[str, list[str]]) -> list[str]:
    """The task itself, or the tasks of a group, each once."""
    return list(dict.fromkeys(one for one in (name, *_below(name, inside)) if one not in inside))


def _config_hash(config: dict | None) -> str | None:
    if config is None:
        return None
    kept = {key: value for key, value in config.items() if key not in _PLACES}
    return _sha256(json.dumps(kept, sort_keys=True, default=lambda value: getattr(value, "__qualname__", str(value))))


def _together(parts: Iterable[str]) -> str | None:
    """One sha256 over texts in their order; None where there are none."""
    joined = [_sha256(part) for part in parts]
    return _sha256("\n".join(joined)) if joined else None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness's log of what it is told, and without its bars where nobody watches; errors are raised."""
    logger = logging.getLogger("lm_eval")
    before, logger.disabled = logger.disabled, True
    unwatched = nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())
    try:
        with unwatched:
            yield
    finally:
        logger.disabled = before
