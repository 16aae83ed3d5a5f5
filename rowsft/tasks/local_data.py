"""The splits of the user's own data: from files, saved data sets or the hub, and cut off train where none is given."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rowsft.errors import UserError, shortened
from rowsft.store.files import sha256
from rowsft.tasks import repeats, source_splits
from rowsft.tasks.data_settings import FILES, checked
from rowsft.tasks.reading import (
    EXPECTED,
    Choice,
    Table,
    check_same_classes,
    is_file_name,
    is_saved,
    read_file,
    read_hub,
    read_saved,
    read_split_files,
)
from rowsft.tasks.splits import NAMES, split_by_hash


class Tables:
    """The splits that `task.data` describes, each a Table of text columns.

    `path` is one file, a folder of files or a saved one, or a hub id (with `config` and `revision`); or `train_path`,
    `validation_path` and `test_path` are files; or, with neither, `hub` names a data set. `splits` says which splits
    of a folder or a hub data set are ours (see source_splits). Splits that are not given are cut off train: the shares
    `validation` and `test` of its rows, by the hash of the row's text and `split_seed`, texts that are equal but for
    case and blanks together.

    Raises UserError for values that no data could make right; the data are not touched before `read`.
    """

    def __init__(self, data: Mapping[str, Any]):
        self.data = checked(data)
        self.files: dict[str, Path] = {}
        self.counts: dict[str, Any] = {}
        self.warnings: list[str] = []
        self._too_large: list[str] = []
        self._empty = "refuse"

    def at_hand(self) -> bool:
        """Whether all files and folders that are named are here; a hub id is not."""
        paths = [Path(str(self.data[key])).expanduser() for key in FILES if self.data[key]]
        return bool(paths) and all(path.exists() for path in paths)

    def read(
        self, columns: Sequence[str], text_columns: Sequence[str], pieces: Callable[[Table], Table] | None = None
    ) -> dict[str, Table]:
        """train, validation and test. Raises UserError for a missing file, column, cell or split.

        pieces: makes the rows of a split out of its lines; those of running text may be blank, and are kept for it.

        `counts` and `warnings` then say what was skipped and what occurs twice, by the text in `text_columns`.
        """
        path, train_path = self.data["path"], self.data["train_path"]
        if (path is None) == (train_path is None) and (path is not None or self.data["hub"] is None):
            raise UserError(
                f"task.data.path={path}, task.data.train_path={train_path}: give one of them (a file, {EXPECTED}; "
                "for path also a hub id)"
            )
        columns = list(dict.fromkeys(columns))
        self._empty = "keep" if pieces else self.data["empty"] or "refuse"
        if path is not None:
            given = self._from_path(str(path), columns)
        elif train_path is None:
            given = self._from_hub("task.data.hub.id", columns, **self.data["hub"])
        else:
            given = {name: self._file(f"{name}_path", name, columns) for name in NAMES if self.data[f"{name}_path"]}
        if pieces:
            given = {name: pieces(table) for name, table in given.items()}
        for table in given.values():
            check_same_classes(given["train"], table)
        keys = {name: repeats.keys(*(table.columns[c] for c in text_columns)) for name, table in given.items()}
        splits = self._completed(given, text_columns, keys)
        self._count(splits, keys, shortened(" and ".join(text_columns)))
        return splits

    def _from_path(self, path: str, columns: list[str]) -> dict[str, Table]:
        where, folder = f"task.data.path={shortened(path, 200)}", Path(path).expanduser()
        if folder.is_dir():
            choose = self._choice(where, all_known=not is_saved(folder))
            return self._folder("path", folder, where, columns, None, choose)
        if is_file_name(path):
            return {"train": self._file("path", "row", columns)}
        self._refuse("separator")
        config, revision = (None if self.data[key] is None else str(self.data[key]) for key in ("config", "revision"))
        return self._from_hub("task.data.path", columns, path, config, revision)

    def _from_hub(
        self, key: str, columns: list[str], id: str, config: str | None, revision: str | None
    ) -> dict[str, Table]:
        where = f"{key}={shortened(id, 200)}"
        return read_hub(id, where, config, revision, columns, self._choice(where, all_known=False), self._empty)

    def _choice(self, where: str, all_known: bool) -> Choice:
        return source_splits.choice(self.data["splits"], where, all_known)

    def _file(self, key: str, prefix: str, columns: list[str]) -> Table:
        path = Path(str(self.data[key])).expanduser()
        where = f"task.data.{key}={shortened(path, 200)}"
        if path.is_dir():
            return self._folder(key, path, where, columns, prefix, partial(_only_train, where))["train"]
        if not path.exists():
            raise UserError(f"{where}: no such file; expected one with the ending {EXPECTED}")
        if not path.is_file():
            raise UserError(f"{where}: is not a regular file; expected one with the ending {EXPECTED}")
        self._refuse("config", "revision")
        self.files[key] = path
        return read_file(path, where, columns, prefix, self.data["separator"], self._empty)

    def _folder(
        self, key: str, path: Path, where: str, columns: list[str], prefix: str | None, choose: Choice
    ) -> dict[str, Table]:
        self._refuse("config", "revision", *(["separator"] if is_saved(path) else []))
        self.files[key] = path
        if is_saved(path):
            return read_saved(path, where, columns, prefix or "row", choose, self._empty)
        return read_split_files(path, where, columns, self.data["separator"], choose, prefix, self._empty)

    def _refuse(self, *keys: str) -> None:
        """Raise UserError for settings that mean nothing for the data at hand: ignored, they would mislead."""
        for key in keys:
            if self.data[key] is not None:
                kind = "a csv file" if key == "separator" else "a data set of the hub"
                raise UserError(f"task.data.{key}={shortened(self.data[key])}: is for {kind}; set it to null")

    def _completed(self, given: dict[str, Table], texts: Sequence[str], keys: dict) -> dict[str, Table]:
        """The splits that are given, and the others cut off train; `keys` becomes those of the splits."""
        train = given["train"]
        missing = [name for name in NAMES[1:] if name not in given]
        for name in missing:
            if not self.data[name]:
                raise UserError(
                    f"task.data.{name}={self.data[name]}: expected a share between 0 and 1, or task.data.{name}_path"
                )
        sizes = {name: max(1, round(self.data[name] * len(train))) if name in missing else 0 for name in NAMES[1:]}
        different = len(set(keys["train"]))
        if different < 1 + len(missing):
            raise UserError(
                f"task.data: {len(train)} rows with {different} different texts cannot be cut into "
                f"{1 + len(missing)} splits; give more rows, or files of their own (task.data.validation_path, "
                "task.data.test_path)"
            )
        if not missing:
            return {name: given[name] for name in NAMES}
        names = _group_names(train, texts, keys["train"])
        cut = split_by_hash(range(len(train)), names, **sizes, seed=self.data["split_seed"] or 0)
        if not cut["train"]:
            raise UserError(
                f"task.data.validation={self.data['validation']}, task.data.test={self.data['test']}: nothing of "
                f"{len(train)} rows is left to train on; lower the shares"
            )
        self._too_large = [
            f"{name} has {len(cut[name]):,} of {len(train):,} rows, where task.data.{name}={self.data[name]} asks for "
            f"{sizes[name]:,}: rows with the same {shortened(' and '.join(texts))} stay together"
            for name in missing
            if len(cut[name]) >= 1.5 * sizes[name] + 1
        ]
        splits, of_train = dict(given), keys["train"]
        for name in ("train", *missing):
            splits[name] = train.take(cut[name])
            keys[name] = [of_train[i] for i in cut[name]]
        return {name: splits[name] for name in NAMES}

    def _count(self, splits: dict[str, Table], keys: dict, what: str) -> None:
        repeated = repeats.repeats(keys)
        sizes = {name: len(table) for name, table in splits.items()}
        self.warnings = [*self._too_large, *repeats.warnings(repeated, sizes, what)]
        # Splits cut off one file share its counts.
        sources = {table.source: table.counts for table in splits.values()}
        dropped = {source: counts.empty_rows for source, counts in sources.items() if counts.empty_rows}
        self.warnings += [
            f"{source}: {count:,} rows without a value in a column that is used are left out (task.data.empty=drop)"
            for source, count in dropped.items()
        ]
        self.counts = {
            "blank_lines_skipped": sum(counts.blank_lines for counts in sources.values()),
            **({"rows_with_empty_cells_dropped": sum(dropped.values())} if self._empty == "drop" else {}),
            "rows_repeated_within_split": repeated["within"],
            "rows_repeated_across_splits": repeated["across"],
        }

    def facts(self) -> dict[str, Any]:
        """source and sha256 of the files that were read; the licence of the user's own data is not known here."""
        paths = [str(self.data[key]) for key in FILES if self.data[key]]
        hub = self.data["hub"] if self.data["hub"] and not paths else {"revision": self.data["revision"]}
        return {
            "source": ", ".join(paths) or " ".join(hub[key] for key in ("id", "config") if hub[key]),
            "revision": hub["revision"],
            "licence": "not stated: the user's own data",
            "caveat": "",
            "sha256": {key: sha256(path) for key, path in self.files.items()},
            "counts": self.counts,
            "warnings": self.warnings,
        }


def _group_names(table: Table, columns: Sequence[str], keys: list[bytes]):
    """The text that stands for row `i` when splits are cut: of rows that fold alike, the first in order of characters.

    It is the row's own text wherever no other folds like it.
    """
    texts = list(map("\n".join, zip(*(table.columns[name] for name in columns), strict=True)))
    first: dict[bytes, str] = {}
    for key, text in zip(keys, texts, strict=True):
        if key not in first or text < first[key]:
            first[key] = text
    return lambda i: first[keys[i]]


def _only_train(where: str, names: Sequence[str]) -> dict[str, str]:
    if list(names) != ["train"]:
        raise UserError(f"{where}: holds the splits {', '.join(names)}; give it as task.data.path")
    return {"train": "train"}
