"""Which runs may stand in one table: those that share base weights, task, data and primary metric.

Everything else that differs in a table is the method, its own settings, or what was swept (sweeps.py).
"""

import re
from collections import Counter
from functools import lru_cache
from pathlib import Path, PurePath

from rowsft import config_folders
from rowsft.report.settings import dig, flatten, named, text_of, under
from rowsft.store import Record

#: Settings that all rows of a table share, whichever way they are written.
SHARED = (
    *("model.name", "model.source", "model.revision", "model.quantize", "revisions.model"),
    *("task.name", "revisions.data", "task.data", "task.primary_metric"),
)

_SHA256 = re.compile(r"[0-9a-f]{64}")


def groups(records: list[Record]) -> dict[tuple[str, str], list[Record]]:
    """Return {(task's label, model's label): the runs of one table}, sorted by label."""
    tasks_and_models = labels(records)
    tables: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        tables.setdefault(tasks_and_models[record.id], []).append(record)
    return dict(sorted(tables.items()))


def labels(records: list[Record]) -> dict[str, tuple[str, str]]:
    """Return {run id: (task's label, model's label)}, no longer than it takes to tell those of these runs apart."""
    keys = {record.id: key_of(record) for record in records}
    tasks: dict[tuple, Record] = {}
    models: dict[tuple, Record] = {}
    for record in records:
        data, base = keys[record.id]
        tasks.setdefault(data, record)
        models.setdefault(base, record)
    task_labels = _distinct({key: _tasks(record) for key, record in tasks.items()})
    model_labels = _distinct({key: _models(record) for key, record in models.items()})
    return {run: (task_labels[data], model_labels[base]) for run, (data, base) in keys.items()}


def key_of(record: Record) -> tuple[tuple, tuple]:
    """Return what runs of one table share: a key of task and data, and one of the base weights."""
    return _data(record), _base(record)


def model_label(record: Record) -> str:
    """Return the model's name, or that of its folder or hub id where these are not the named model's own weights."""
    return _models(record)[0]


def _base(record: Record) -> tuple:
    """Return what tells base weights apart. A folder's fingerprint does, whichever way its path is written.

    A base in 4 or 8 bits has other weights than the checkpoint that it was made from.
    """
    packed = _packed_in(record)
    return (*_checkpoint(record), packed) if packed else _checkpoint(record)


def _packed_in(record: Record) -> str | None:
    """Return what the base was packed in; None for one as its checkpoint has it."""
    value = dig(record.config, "model", "quantize")
    return str(value) if value else None


def _checkpoint(record: Record) -> tuple:
    model = record.config.get("model")
    revision = str(dig(record.config, "revisions", "model"))
    drawn = _is_random(record)
    if _SHA256.fullmatch(revision):
        return (revision, drawn)
    if not isinstance(model, dict) or not model.get("source"):
        return (named(record.config, "model"), revision, drawn)
    return (str(model["source"]), str(model.get("revision")), revision, drawn)


def _is_random(record: Record) -> bool:
    """Return whether the base weights are drawn from the seed, the checkpoint giving no more than their shapes."""
    return dig(record.config, "model", "pretrained") is False


def _data(record: Record) -> tuple:
    """Return what tells a task, its data and its metric apart: a file by its content, wherever it lies."""
    files = flatten(dig(record.config, "revisions", "data") or {})
    data = flatten({"data": dig(record.config, "task", "data") or {}})
    other = sorted((key, text_of(value)) for key, value in data.items() if key not in files)
    contents = tuple(sorted((key, str(sha)) for key, sha in files.items()))
    return (named(record.config, "task"), contents, tuple(other), str(dig(record.config, "task", "primary_metric")))


def _models(record: Record) -> list[str]:
    """Return labels of a model, from the shortest to the one that tells it from every other."""
    source, name = str(dig(record.config, "model", "source") or ""), named(record.config, "model")
    revision = str(dig(record.config, "revisions", "model") or "")
    fingerprint = _SHA256.fullmatch(revision)
    if fingerprint or _is_path(source):
        parts = PurePath(source).parts
        tails = ["/".join(parts[-depth:]) for depth in range(1, len(parts) + 1)] or [name]
        if _named_source(name) == source:
            tails.insert(0, name)
    else:
        # Another model's weights under this model's settings (model=llama3_8b model.source=someone/other).
        replaced = _named_source(name) not in (None, source) and source
        tails = [source.removeprefix("package:") if replaced else name, f"{name} ({source})"]
    if _is_random(record):
        tails = [f"{label} (random weights)" for label in tails]
    if packed := _packed_in(record):
        tails = [f"{label} ({packed})" for label in tails]
    mark = revision[:8] if fingerprint else revision
    return [*tails, *(f"{label} @ {mark}" for label in tails), f"{name} {source} @ {revision}"]


def _named_source(name: str) -> str | None:
    """Return the source that conf/model/ gives a model of this name; None where there is no such model."""
    if not re.fullmatch(r"[\w.-]+", name):
        return None
    try:
        return _source(config_folders.file("model", name))
    except (LookupError, OSError):
        return None


@lru_cache
def _source(path: Path) -> str | None:
    match = re.search(r"^source:\s*(\S+)", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return match[1] if match else None


def _tasks(record: Record) -> list[str]:
    """Return labels of a task with its data, from the shortest to the one that tells it from every other."""
    name = named(record.config, "task")
    settings = flatten(dig(record.config, "task") or {})
    # A file of a task of one's own stands anywhere; the name of its setting ends with path.
    of_data = {key: value for key, value in settings.items() if key.startswith("data.") or key.endswith("path")}
    values = [str(value) for value in of_data.values() if value is not None]
    files = flatten(dig(record.config, "revisions", "data") or {})
    shas = [str(sha)[:8] for _, sha in sorted(files.items())]
    short = ", ".join(PurePath(value).name or value for value in values)
    metric = dig(record.config, "task", "primary_metric")
    long, whole = ", ".join(values), ", ".join([*values, *shas])
    parts = ([short], [short, metric], [long], [whole], [whole, metric])
    return [name, *(f"{name} ({'; '.join(filter(None, part))})" for part in parts)]


def _is_path(source: str) -> bool:
    """Return whether a model's source is a folder's path: a hub id has one slash and a package none."""
    if source.startswith("package:"):
        return False
    return source.startswith(("/", ".", "~")) or source.count("/") > 1 or "\\" in source


def _distinct(options: dict[tuple, list[str]]) -> dict[tuple, str]:
    """Return {key: the first of its options that no other key has}; numbered where all are taken."""
    chosen = dict.fromkeys(options, 0)
    while True:
        labels = {key: options[key][chosen[key]] for key in options}
        taken = Counter(labels.values())
        again = [key for key in options if taken[labels[key]] > 1 and chosen[key] + 1 < len(options[key])]
        if not again:
            break
        for key in again:
            chosen[key] += 1
    seen: Counter = Counter()
    for key, label in labels.items():
        seen[label] += 1
        labels[key] = label if taken[label] == 1 else f"{label} #{seen[label]}"
    return labels


def compared(key: str) -> bool:
    """Return whether a setting may tell rows of a table apart, the method and its own settings left out."""
    return not under(key, ("method", *SHARED))
