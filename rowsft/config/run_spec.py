"""What a composed configuration will run as: its id, its folder and its name. Imports no torch: skipping is instant."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from rowsft.assets import python_reference
from rowsft.config import typed
from rowsft.errors import UserError, shortened
from rowsft.output import redact
from rowsft.record import is_alone
from rowsft.store import Store
from rowsft.store.files import content_of, sha256
from rowsft.store.identity import GENERAL_TEXT
from rowsft.store.places import Places
from rowsft.store.record import UnreadableRecord, read_record
from rowsft.store.whole_checkpoint import base_of, checkpoint_folder, weight_files

_CHANGED = "changed"


@dataclass(frozen=True)
class RunSpec:
    """One run before it starts. `config` is plain data with the revisions of model and data filled in; unlike what is
    recorded of it, it holds secrets as they are."""

    run_id: str
    store: Path
    folder: Path
    experiment: str
    label: str
    config: dict

    @property
    def measures(self) -> bool:
        """Whether a finished run is to be measured again, alone, and not run."""
        return self.config.get("measure") == "alone"

    @property
    def is_done(self) -> bool:
        """Whether what is asked for is recorded: a result, or with measure=alone one that was measured alone."""
        if not self.measures:
            return Store(self.store).is_done(self.run_id)
        try:
            result = read_record(self.folder).result
        except (UnreadableRecord, UserError):
            return False
        return result is not None and is_alone(result)


def run_spec(config: DictConfig | dict, places: Places | None = None) -> RunSpec:
    """Name the run that `config` (composed and resolved) describes.

    The folder is that of the run's id, or, where an older version recorded the same run under an id of its own, that.
    places: the listed store, for a caller who asks for many runs.
    """
    plain = config if isinstance(config, dict) else typed.plain(config)
    plain["revisions"] = {"model": _model_revision(plain["model"]), "data": _data_revisions(plain)}
    plain["method"] = method_settings(plain)
    if changed := _changed(plain["method"]):
        plain["revisions"][_CHANGED] = _weights_revision(changed)
    store = Path(plain["store"])
    folder = (places or Places(store)).place(plain)
    label = f"{plain['method']['name']} on {plain['task']['name']} with {plain['model']['name']}, seed {plain['seed']}"
    experiment = redact.config({"experiment_name": plain["experiment_name"]})["experiment_name"]
    return RunSpec(folder.name, store, folder, experiment, redact.text(label), plain)


def method_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The method's settings of a composed configuration, plain; a run that method.changed names has become its folder.

    Raises UserError where that folder holds no whole checkpoint of the run's model.
    """
    settings = config["method"] if isinstance(config, dict) else typed.plain(config["method"])
    changed = _changed(settings)
    if changed is None:
        return settings
    model = config["model"] if isinstance(config, dict) else typed.plain(config["model"])
    started = base_of({"model": model, "seed": config["seed"], "revisions": {"model": _model_revision(model)}})
    return {**settings, _CHANGED: str(checkpoint_folder(changed, config["store"], f"method.{_CHANGED}", started))}


def _changed(settings: Mapping[str, Any]) -> str | None:
    """The second checkpoint of a method that chooses by scores; a key of that name of another method is its own."""
    changed = settings.get(_CHANGED) if "importance" in settings else None
    if isinstance(changed, int | float):
        raise UserError(
            f"method.{_CHANGED}={changed}: read as a number; put a run's id that looks like one between quotes, "
            f"\"method.{_CHANGED}='0123'\""
        )
    return changed if isinstance(changed, str) else None


def _model_revision(model: dict) -> str:
    source = str(model["source"])
    try:
        folder = Path(source).expanduser()
        if folder.is_dir():
            return _folder_fingerprint(folder)
    except (OSError, RuntimeError, ValueError) as error:
        # A name too long for a file, the home of nobody, a folder that may not be read.
        raise UserError(f"model.source={shortened(source)}: cannot be looked at ({error}); check the path") from error
    return str(model.get("revision") or source)


def _data_revisions(config: dict) -> dict[str, str]:
    """The sha256 of the content of every local data file or folder that task or trainer.forgetting name: edited data
    are another run."""
    digests = {}
    general = (config["trainer"].get("forgetting") or {}).get("path")
    if general == python_reference.NAME:
        # Of the Python that runs.
        general = str(python_reference.file() or general)
    for key, value in sorted([*_leaves(config["task"]), (GENERAL_TEXT, general)]):
        if isinstance(value, str) and value and _may_be_path(key, value):
            digest = _digest(value, folders=key.rsplit(".", 1)[-1].endswith("path"))
            if digest:
                digests[key] = digest
    return digests


def _may_be_path(key: str, value: str) -> bool:
    """A file that happens to be called as a column or a class is not meant by that."""
    return key.rsplit(".", 1)[-1].endswith(("path", "file", "files")) or os.sep in value or "." in value


def _digest(text: str, folders: bool) -> str | None:
    try:
        path = Path(text).expanduser()
        if path.is_file():
            return content_of(path)
        return sha256(path) if folders and path.is_dir() else None
    except (OSError, RuntimeError, ValueError):
        # A prompt template, say: longer than any file name, or the home of nobody. A file that may not be read is told
        # of by its reader.
        return None


def _weights_revision(folder: str) -> str:
    """The sha256 of the content of a checkpoint's weights, all of it: a run depends on every row."""
    try:
        contents = [content_of(path) for path in weight_files(Path(folder).expanduser())]
    except OSError as error:
        raise UserError(f"method.{_CHANGED}={folder}: cannot be read ({error}); check the folder") from error
    return hashlib.sha256("".join(contents).encode()).hexdigest()


def _folder_fingerprint(folder: Path) -> str:
    """Names, sizes and change times of a model folder's files: weights of many gigabytes are not read for it."""
    facts = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.iterdir()) if p.is_file()]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _leaves(node, prefix: str = ""):
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _leaves(value, f"{prefix}{key}.")
    else:
        yield prefix.rstrip("."), node
