"""The whole checkpoint that a setting names, by its folder or by the run that has trained it. Imports no torch."""

import json
import re
from pathlib import Path

from rowsft.errors import UserError, shortened
from rowsft.store.finding import finished_run
from rowsft.store.record import Record

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
_RUN_ID = re.compile("[0-9a-f]{1,12}")
_ADAPTER = "adapter_config.json"


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint: its one file, or the shards that its index names, sorted.

    None of them for a folder that holds no such checkpoint. Raises UserError for an index that is damaged.
    """
    if (folder / FILE).is_file():
        return [folder / FILE]
    index = folder / INDEX
    if not index.is_file():
        return []
    try:
        return sorted({folder / name for name in json.loads(index.read_bytes())["weight_map"].values()})
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{index}: cannot be read ({shortened(error, 200)}); save the checkpoint again") from error


def check_whole(folder: Path, setting: str) -> None:
    """Raise UserError, naming the `setting` with its value, for a folder that holds no whole checkpoint."""
    expected = "expected a folder with the whole model as transformers saves it: config.json and safetensors files"
    if not folder.is_dir():
        raise UserError(f"{setting}: no such folder; {expected}")
    files = weight_files(folder)
    if not files and (folder / _ADAPTER).is_file():
        raise UserError(f"{setting}: holds an adapter alone ({_ADAPTER}); {expected}")
    missing = [path.name for path in [folder / "config.json", *files] if not path.is_file()]
    if missing or not files:
        raise UserError(f"{setting}: no {(missing or [FILE])[0]} in this folder; {expected}")


def checkpoint_folder(text: str, store: str | Path, setting: str, base: dict[str, object]) -> Path:
    """Return the folder of the checkpoint that `text` names: a folder, a run's folder, or the id of a run of `store`.

    setting: its name, for errors. base: what a run recorded of the weights that it started from, by `base_of`, which
    must be the same. Raises UserError for what is no whole checkpoint, and for a run that has saved none.
    """
    what, folder = f"{setting}={shortened(text)}", Path(text).expanduser()
    try:
        is_run = (folder / "record.json").is_file()
        if not is_run and (folder.is_dir() or not _RUN_ID.fullmatch(text)):
            check_whole(folder, what)
            return folder
        record = finished_run(text, store)
    except UserError as error:
        raise error if str(error).startswith(what) else UserError(f"{what}: {error}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{what}: cannot be looked at ({error}); check the path") from error
    return _of_run(record, what, base)


def base_of(config: dict) -> dict[str, object]:
    """Return what of a resolved config, with its revisions, says which weights a run starts from."""
    model, revisions = config.get("model") or {}, config.get("revisions") or {}
    drawn = not model.get("pretrained", True)
    return {"model": revisions.get("model"), **({"seed": config.get("seed")} if drawn else {})}


def _of_run(record: Record, what: str, base: dict[str, object]) -> Path:
    folder = record.file("adapter")
    method = (record.config.get("method") or {}).get("name")
    if folder is None or not (folder / "config.json").is_file() or not weight_files(folder):
        raise UserError(
            f"{what}: run {record.id} is of method={method} and has no whole checkpoint; expected a finished run of "
            "method=full, whose files are still there"
        )
    if base_of(record.config) != base:
        raise UserError(
            f"{what}: run {record.id} started from other weights than this run (model.source, its revision, or the "
            "seed that drew them); expected a full fine-tuning of this run's model"
        )
    check_whole(folder, what)
    return folder.resolve()
