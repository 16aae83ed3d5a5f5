"""What a composed configuration will run as: its id, its folder and its name. Imports no torch: skipping is instant."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from rowsft.store import run_id


@dataclass(frozen=True)
class RunPlan:
    """One run before it starts. `config` is plain data with the revisions of model and data filled in."""

    run_id: str
    store: Path
    folder: Path
    experiment: str
    label: str
    config: dict


def plan_run(config: DictConfig) -> RunPlan:
    """Name the run that `config` (composed and resolved) describes."""
    plain = OmegaConf.to_container(config, resolve=True)
    plain["revisions"] = {"model": _model_revision(plain["model"]), "data": _data_revisions(plain["task"])}
    identity = run_id(plain)
    store = Path(plain["store"])
    label = f"{plain['method']['name']} on {plain['task']['name']} with {plain['model']['name']}, seed {plain['seed']}"
    return RunPlan(identity, store, store / identity, plain["experiment_name"], label, plain)


def _model_revision(model: dict) -> str:
    source = str(model["source"])
    folder = Path(source).expanduser()
    if folder.is_dir():
        return _folder_fingerprint(folder)
    return str(model.get("revision") or source)


def _data_revisions(task: dict) -> dict[str, str]:
    """The sha256 of every local data file that the task names: an edited file is another run."""
    paths = {key: Path(value).expanduser() for key, value in _leaves(task) if isinstance(value, str) and value}
    files = {key: path for key, path in sorted(paths.items()) if _is_file(path)}
    return {key: hashlib.sha256(path.read_bytes()).hexdigest() for key, path in files.items()}


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        # A prompt template, say: longer than any file name.
        return False


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
