"""What a run is: the part of its config that determines its result, and the hash of that part (docs/runs.md)."""

import hashlib
import json
import math
import re
from pathlib import PurePath
from typing import Any

from rowsft.errors import UserError
from rowsft.store.former_words import as_recorded
from rowsft.store.ignored import ignored

#: Raised by one whenever a change of the code changes results: old runs then keep their ids and new ones get their own.
RESULTS_VERSION = 2

#: Top-level keys that say where a run is shown, kept, grouped or explained, never what it computes.
PRESENTATION = frozenset(
    {
        "store",
        "tracker",
        "experiment",
        "experiment_name",
        "demonstration",
        "fairness",
        "assets",
        "hydra",
        "ignores",
        "retry",
        "resume_unfinished",
        "resume_errored",
        "restart_errored",
        "measure",
        "measure_steps",
        "tune",
    }
)

#: How often a run that may be stopped writes down how far it is: what it computes, and what it is timed at, stays.
CHECKPOINTS = ("trainer.checkpoint_steps", "trainer.checkpoint_minutes", "trainer.checkpoint_stop_seconds")

#: A property of the machine: the same steps on the same batches, in as many processes as it has devices.
PROCESSES = "trainer.processes"

#: The one path outside of the task whose content counts, under this name in `revisions.data`.
GENERAL_TEXT = "trainer.forgetting.path"

#: The same, wherever they stand: where files are cached and whether a bar is drawn.
PRESENTATION_ANYWHERE = frozenset({"cache_dir", "progress"})

#: The keys of a budget: with one of them set, the budget's default is not read.
BUDGET_KEYS = ("rows", "ratio", "params", "like")


#: Keys of multiple choice that are younger than many records, and what they are where they are off: then in no id.
_OFF = {"form": "fields", "max_new_tokens": None, "primary_metric": "accuracy_mean"}

# Endings that say how a file is packed, not what it holds.
_PACKED = (".gz", ".bz2", ".xz", ".zst")
_FINGERPRINT = re.compile("[0-9a-f]{64}")


def identity(config: dict) -> dict:
    """The part of a resolved config that determines the result, with `results_version`.

    Left out is what the method ignores (`rowsft.store.ignored`) and a budget's default where another key is set. Files
    and model folders stand there by their content (under `revisions`), not by their path. An integral float reads as
    an integer (0.0 and 0 are one setting). Raises UserError for a value that JSON cannot hold or that is not finite,
    naming its key.
    """
    whole = old_identity(config)
    unread = ignored(config)
    for key in unread:
        _drop(whole, key)
    if "trainer.calibration_batches" in unread:
        _drop(whole, "trainer.calibration_overlap")
    if "method.group_bytes" in unread:
        # A metric that reads no data draws no perturbations; ids of such runs were made without.
        _drop(whole, "method.draws")
    budget = whole.get("budget")
    if isinstance(budget, dict) and any(budget.get(spec) is not None for spec in BUDGET_KEYS):
        budget.pop("default", None)
    _by_content(whole)
    return whole


def old_identity(config: dict) -> dict:
    """What `identity` was before it left anything out: ids of older runs are made of it."""
    kept = {str(key): value for key, value in as_recorded(config).items() if str(key) not in PRESENTATION}
    settings = _plain(kept, "")
    for key in (*CHECKPOINTS, PROCESSES):
        _drop(settings, key)
    trainer = settings.get("trainer")
    for key in ("calibration_overlap", "evaluate_every", "strategy"):
        if isinstance(trainer, dict) and trainer.get(key) is None:
            # Younger than many records: where it is off it is in no id.
            trainer.pop(key, None)
    for key, default in (("optimizer", "adamw"), ("fused_linear_cross_entropy", False)):
        if isinstance(trainer, dict) and trainer.get(key) == default:
            trainer.pop(key)
    model, method = settings.get("model"), settings.get("method")
    is_packed = isinstance(model, dict) and model.get("quantize") is not None
    if isinstance(model, dict) and not is_packed:
        model.pop("quantize", None)
    if isinstance(method, dict):
        _drop_young(method, is_packed)
    if isinstance(trainer, dict) and not _is_measured(trainer.get("forgetting")):
        trainer.pop("forgetting", None)
    task = settings.get("task")
    for each in _with_tasks_within(task):
        if each.get("long_examples") == "truncate":
            each.pop("long_examples")
        if "llm_adapters" in each or "tasks" in each:
            # Multiple choice, or a mix of such tasks.
            for key, off in _OFF.items():
                if each.get(key, ...) == off:
                    each.pop(key)
    if isinstance(data := task.get("data") if isinstance(task, dict) else None, dict):
        for key, off in (("splits", None), ("hub", None), ("empty", "refuse")):
            if data.get(key) in (None, off):
                data.pop(key, None)
        if any(data.get(key) is not None for key in ("path", "train_path")):
            # It stands in where no path is given.
            data.pop("hub", None)
    return {"results_version": RESULTS_VERSION, **settings}


def _with_tasks_within(task: object) -> list[dict]:
    """The settings of a task, and of each of those that it is made of."""
    if not isinstance(task, dict):
        return []
    inner = task.get("tasks")
    return [task, *(each for each in inner.values() if isinstance(each, dict))] if isinstance(inner, dict) else [task]


def _is_measured(forgetting: object) -> bool:
    """Whether trainer.forgetting names a text; where it does not, nothing reads its other keys."""
    return isinstance(forgetting, dict) and forgetting.get("path") is not None


def run_id(config: dict) -> str:
    """First 12 hex digits of the sha256 of the canonical JSON (sorted keys, no spaces, UTF-8) of `identity(config)`."""
    return _hash(identity(config))


def old_run_id(config: dict) -> str:
    """The id that the same config had by `old_identity`."""
    return _hash(old_identity(config))


def _hash(settings: dict) -> str:
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:12]


def _drop(settings: dict, key: str) -> None:
    *path, last = key.split(".")
    node: object = settings
    for part in path:
        node = node.get(part) if isinstance(node, dict) else None
    if isinstance(node, dict):
        node.pop(last, None)


def _drop_young(method: dict, is_packed: bool) -> None:
    """Take out keys of row-SFT, of LoRA, and of methods built on their files, that were not there when many runs were
    recorded, where they are off."""
    if "importance" in method:
        if method.get("changed") is None:
            method.pop("changed", None)
        if not is_packed:
            # How rows of a quantised base start.
            method.pop("quantised_start", None)
    if "scaling" in method and method.get("alpha") is None:
        method.pop("alpha", None)


def _by_content(settings: dict) -> None:
    """Put in place of a path what of it counts: the ending, by which a file is read. Its content is a revision."""
    revisions = settings.get("revisions")
    if not isinstance(revisions, dict):
        return
    model, task = settings.get("model"), settings.get("task")
    if isinstance(model, dict) and "source" in model and _FINGERPRINT.fullmatch(str(revisions.get("model"))):
        model["source"] = "folder"
        if "revision" in model:
            # Only a hub has them.
            model["revision"] = None
    method = settings.get("method")
    if isinstance(method, dict) and "changed" in method and _FINGERPRINT.fullmatch(str(revisions.get("changed"))):
        method["changed"] = "folder"
    for key in revisions.get("data") or () if isinstance(revisions.get("data"), dict) else ():
        *path, last = key.split(".")
        node: object = settings if key == GENERAL_TEXT else task
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict) and isinstance(node.get(last), str):
            node[last] = f"file{_ending(node[last])}"


def _ending(path: str) -> str:
    endings = [ending.lower() for ending in PurePath(path).suffixes]
    packed = 1 + (len(endings) > 1 and endings[-1] in _PACKED)
    return "".join(endings[-packed:])


def experiment_name(config: dict) -> str | None:
    """The experiment that a config was composed for, or None."""
    return config.get("experiment_name")


def experiment_notes(config: dict) -> dict:
    """What an experiment says about itself for the report: `demonstration` and `fairness`, where set.

    And `tune`, where a stage of its sweep chose the learning rates, and alphas.
    """
    notes = {key: config[key] for key in ("demonstration", "fairness") if config.get(key)}
    tune = config.get("tune")
    if not (isinstance(tune, dict) and tune.get("lr")):
        return notes
    # Younger than many notes: where no alpha is tried they stay as they are.
    return notes | {"tune": {key: value for key, value in tune.items() if key != "alpha" or value is not None}}


def _plain(value: Any, where: str) -> Any:
    # Nearly all values are of these; a record is read with each of its settings passing here.
    if value is None or type(value) in (str, int, bool):
        return value
    if isinstance(value, dict):
        items = ((str(key), item) for key, item in value.items() if str(key) not in PRESENTATION_ANYWHERE)
        return {key: _plain(item, f"{where}.{key}" if where else key) for key, item in items}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UserError(f"{where}={value} is not finite; a config value must be a finite number or null")
        return int(value) if value.is_integer() else value
    if isinstance(value, int | str):
        return value
    raise UserError(
        f"{where}={value!r} is a {type(value).__name__}; "
        "a config value must be a number, a text, a list, a mapping or null"
    )
