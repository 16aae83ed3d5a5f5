"""Tables for the tasks that read the user's own data: csv, tsv, json and jsonl files, or a data set of the hub."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rowsft.errors import UserError
from rowsft.tasks.splits import NAMES, split_by_hash

_READERS: dict[str, tuple[str, dict[str, Any]]] = {
    # The word NA in a text is a word, not a missing value.
    ".csv": ("csv", {"keep_default_na": False}),
    ".tsv": ("csv", {"keep_default_na": False, "sep": "\t"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
}
# Where a row's own stable name is kept: no column of a data set is called this.
ROW_ID = "__row__"
_KEYS = ("path", "train_path", "validation_path", "test_path", "config", "revision", "validation", "test", "split_seed")


class Tables:
    """The splits that `task.data` describes, as lists of rows (column -> value, ROW_ID -> name of the row).

    `path` is one file, or a hub id (with `config` and `revision`); or `train_path`, `validation_path` and `test_path`
    are files. Splits that are not given are cut off train: the shares `validation` and `test` of its rows, by the hash
    of the row's text and `split_seed`, equal texts together.
    """

    def __init__(self, data: Mapping[str, Any]):
        self.data = {key: data.get(key) for key in _KEYS}
        self.files: dict[str, Path] = {}

    def read(self, columns: Iterable[str], text_columns: Iterable[str]) -> dict[str, list[dict]]:
        """train, validation and test. Raises UserError for a missing file, column or split."""
        path, train_path = self.data["path"], self.data["train_path"]
        if (path is None) == (train_path is None):
            raise UserError(
                f"task.data.path={path}, task.data.train_path={train_path}: give one of them (a csv, tsv, json or "
                f"jsonl file, or for path a hub id)"
            )
        given = self._from_files() if train_path or _is_file_name(str(path)) else self._from_hub()
        for name, rows in given.items():
            _check_columns(rows, columns, name)
        return self._complete(given, list(text_columns))

    def _from_files(self) -> dict[str, list[dict]]:
        if self.data["path"]:
            return {"train": self._file("path", "row")}
        return {name: self._file(f"{name}_path", name) for name in NAMES if self.data[f"{name}_path"]}

    def _file(self, key: str, prefix: str) -> list[dict]:
        path = Path(str(self.data[key])).expanduser()
        if not path.is_file():
            raise UserError(f"task.data.{key}={path}: no such file; expected a csv, tsv, json or jsonl file")
        if path.suffix not in _READERS:
            raise UserError(f"task.data.{key}={path}: unknown ending {path.suffix}; expected {', '.join(_READERS)}")
        self.files[key] = path
        _check_text(f"task.data.{key}={path}", path)
        reader, options = _READERS[path.suffix]
        return _load(f"task.data.{key}={path}", prefix, reader, data_files=str(path), split="train", **options)

    def _from_hub(self) -> dict[str, list[dict]]:
        name, config, revision = self.data["path"], self.data["config"], self.data["revision"]
        splits = _load_hub(f"task.data.path={name}", name, config, revision)
        if "train" not in splits:
            raise UserError(f"task.data.path={name}: no split called train; it has {', '.join(sorted(splits))}")
        return {split: rows for split, rows in splits.items() if split in NAMES}

    def _complete(self, given: dict[str, list[dict]], text_columns: list[str]) -> dict[str, list[dict]]:
        rows = given["train"]
        sizes = {}
        for name in ("validation", "test"):
            share = float(self.data[name] or 0)
            if name not in given and not 0 < share < 1:
                raise UserError(f"task.data.{name}={share}: expected a share between 0 and 1, or task.data.{name}_path")
            sizes[name] = 0 if name in given else max(1, round(share * len(rows)))

        def text(row: dict) -> str:
            return "\n".join(str(row[column]) for column in text_columns)

        parts = 1 + sum(size > 0 for size in sizes.values())
        different = len({text(row) for row in rows})
        if different < parts:
            raise UserError(
                f"task.data: {len(rows)} rows with {different} different texts cannot be cut into {parts} splits; "
                "give more rows, or files of their own (task.data.validation_path, task.data.test_path)"
            )
        cut = split_by_hash(rows, text, **sizes, seed=int(self.data["split_seed"] or 0))
        if not cut["train"]:
            raise UserError(
                f"task.data.validation={self.data['validation']}, task.data.test={self.data['test']}: nothing of "
                f"{len(rows)} rows is left to train on; lower the shares"
            )
        return {name: given[name] if name in given and name != "train" else cut[name] for name in NAMES}

    def facts(self) -> dict[str, Any]:
        """source and sha256 of the files that were read; the licence of the user's own data is not known here."""
        source = {
            key: self.data[key] for key in ("path", "train_path", "validation_path", "test_path") if self.data[key]
        }
        return {
            "source": ", ".join(str(value) for value in source.values()),
            "revision": self.data["revision"],
            "licence": "not stated: the user's own data",
            "caveat": "",
            "sha256": {key: hashlib.sha256(path.read_bytes()).hexdigest() for key, path in self.files.items()},
        }


def _check_text(where: str, path: Path) -> None:
    """Raise UserError for a file without content or in another encoding: the readers' own words name neither."""
    content = False
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                content = content or bool(line.strip())
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: not UTF-8 text ({error.reason}); convert it: iconv -f latin1 -t utf-8 {path.name}"
        ) from error
    if not content:
        raise UserError(f"{where}: the file is empty; expected at least one row")


def _is_file_name(path: str) -> bool:
    return Path(path).suffix in _READERS or path.startswith(("/", ".", "~")) or Path(path).exists()


def _load(where: str, prefix: str, reader: str, **options) -> list[dict]:
    from datasets import load_dataset

    try:
        rows = load_dataset(reader, **options)
    except Exception as error:
        # datasets wraps whatever the parser raised; the innermost message says what is wrong with the file.
        cause = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise UserError(f"{where}: cannot be read ({' '.join(str(cause).split())[:200]}); check the file") from error
    return _numbered(rows, prefix)


def _load_hub(where: str, name: str, config: str | None, revision: str | None) -> dict[str, list[dict]]:
    from datasets import load_dataset

    try:
        found = load_dataset(name, config, revision=revision)
    except Exception as error:
        first = " ".join(str(error).split())[:200]
        raise UserError(
            f"{where}: cannot be loaded from the hub ({first}); if it is gated, accept its terms and run hf auth "
            f"login; without a network, give a local file"
        ) from error
    return {split: _numbered(rows, split) for split, rows in found.items()}


def _numbered(rows: Iterable[dict], prefix: str) -> list[dict]:
    return [{**row, ROW_ID: f"{prefix}-{number}"} for number, row in enumerate(rows)]


def _check_columns(rows: list[dict], columns: Iterable[str], split: str) -> None:
    if not rows:
        raise UserError(f"task.data: the {split} data have no rows")
    present = [name for name in rows[0] if name != ROW_ID]
    for column in columns:
        if column not in rows[0]:
            raise UserError(f"task.data: no column {column} in the {split} data; it has {', '.join(present)}")
        for row in rows:
            if row[column] is None:
                raise UserError(
                    f"task.data: {row[ROW_ID]} (counted from 0) has no value in column {column}; fill or drop it"
                )
