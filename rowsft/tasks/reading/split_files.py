"""Folders of data files, one or several for each split: `train.csv`, `dev.tsv`, `data/train-00000-of-00002.parquet`.

A file's stem names its split. What is no data file by its ending (a README, a licence) is passed over, and so is what
`datasets` writes beside its files.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from rowsft.errors import UserError, shortened
from rowsft.tasks.reading.formats import EXPECTED, Choice, ending_of, read_file
from rowsft.tasks.reading.table import Table, joined

# How else the splits are called, at the beginning of a name.
_SPELLINGS = {"training": "train", "valid": "validation", "val": "validation", "dev": "validation", "testing": "test"}
_FIRST_WORD = re.compile(r"[^-_. ]+")
# name, number of the shard, of how many; a hash closes the names of older uploads to the hub.
_STEM = re.compile(r"(.*?[^-_. \d])(?:[-_.](\d+)(?:-of-(\d+)(?:-[0-9a-f]{16})?)?)?", re.IGNORECASE)
_DESCRIPTIONS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}


class _File(NamedTuple):
    path: Path
    kind: tuple[str, str]
    number: int | None
    total: int | None


def canonical(name: str) -> str:
    """The name of a split in its usual spelling: `dev_matched` is `validation_matched`."""
    name = name.lower()
    return _FIRST_WORD.sub(lambda word: _SPELLINGS.get(word[0], word[0]), name, count=1)


def split_files(folder: Path, where: str) -> dict[str, list[Path]]:
    """The data files of every split, by its name in the usual spelling, in order of their numbers.

    They lie in `folder` or, as data sets of the hub have them, in its folder data. Raises UserError for a folder
    without any, two files that may be meant by one name, and a shard that is missing.
    """
    here, below = _data_files(folder), _data_files(folder / "data")
    if here and below:
        raise UserError(
            f"{where}: holds files of data ({here[0].name}) and others in its folder data; give one of them"
        )
    if not here and not below:
        raise UserError(f"{where}: is a folder; expected a file with one of the endings {EXPECTED}{_folders(folder)}")
    splits: dict[str, list[_File]] = {}
    for path in here or below:
        name, file = _taken_apart(path)
        splits.setdefault(name, []).append(file)
    return {name: _in_order(name, files, where) for name, files in splits.items()}


def read_split_files(
    folder: Path,
    where: str,
    columns: Sequence[str],
    separator: str | None,
    choose: Choice,
    prefix: str | None = None,
    empty: str = "refuse",
) -> dict[str, Table]:
    """The splits that `choose` picks, by the names that they have for us. Ids begin with `prefix`, or the split's name
    in the folder."""
    files = split_files(folder, where)

    def read(name: str, path: Path) -> Table:
        return read_file(path, f"{where}, file {path.relative_to(folder)}", columns, prefix or name, separator, empty)

    return {
        ours: joined([read(name, path) for path in files[name]], where) for ours, name in choose(list(files)).items()
    }


def _data_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [
        path
        for path in sorted(folder.iterdir())
        if ending_of(path) and path.name not in _DESCRIPTIONS and not path.name.startswith(".") and path.is_file()
    ]


def _folders(folder: Path) -> str:
    """Where the data files may be instead: a data set with several configurations has a folder for each."""
    names = [path.name for path in sorted(folder.iterdir()) if path.is_dir() and _data_files(path)]
    return f"; its folders {shortened(', '.join(names), 200)} hold such files: give one of them" if names else ""


def _taken_apart(path: Path) -> tuple[str, _File]:
    ending = str(ending_of(path))
    stem, _, packed = path.name.lower().rpartition(ending)
    match = _STEM.fullmatch(stem)
    name, number, total = match.groups() if match else (stem, None, None)
    counts = (None if digits is None else int(digits) for digits in (number, total))
    return canonical(name), _File(path, (name, ending + packed), *counts)


def _in_order(name: str, files: list[_File], where: str) -> list[Path]:
    """The files of one split by their numbers. Raises UserError where they are not the parts of one whole."""
    numbers = [file.number for file in files]
    alike = len({(file.kind, file.total) for file in files}) == 1 and len(set(numbers)) == len(files)
    if not alike or (None in numbers and len(files) > 1):
        raise UserError(
            f"{where}: {_names(files)} may all be meant by the split {name}; keep one, or number the parts of one "
            f"whole alike ({name}-00000-of-00002, {name}-00001-of-00002)"
        )
    total = files[0].total
    if total is not None and sorted(file.number or 0 for file in files) not in (
        list(range(total)),
        list(range(1, total + 1)),
    ):
        raise UserError(
            f"{where}: the split {name} has {total} files by their names, and here are {len(files)} ({_names(files)}); "
            "get the others, or number these anew"
        )
    return [file.path for file in sorted(files, key=lambda file: file.number or 0)]


def _names(files: Iterable[_File]) -> str:
    return shortened(", ".join(file.path.name for file in files), 200)
