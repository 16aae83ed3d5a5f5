"""Which reader reads what, by the ending of a name: one table for every format, with the same checks of its cells."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from rowsft.errors import UserError, shortened
from rowsft.tasks.reading import arrow, delimited, fields, json_rows, plain_lines
from rowsft.tasks.reading.counts import Counts
from rowsft.tasks.reading.delimited import SEPARATORS
from rowsft.tasks.reading.table import Table, collected
from rowsft.tasks.reading.text_file import read_lines

ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".txt", ".parquet")
_COMPRESSED = tuple(f"{ending}.gz" for ending in ENDINGS if ending != ".parquet")
EXPECTED = (
    f"{', '.join(ENDINGS)} (all but the last also with .gz), or a folder of such files or written by save_to_disk"
)
# From the names of a source's splits to ours: {"train": "train", "test": "validation_matched"}.
Choice = Callable[[Sequence[str]], Mapping[str, str]]
# What save_to_disk leaves in a folder of several splits, and in one of a single split.
_SEVERAL, _SINGLE = "dataset_dict.json", "state.json"


def ending_of(path: Path) -> str | None:
    """The ending that decides how `path` is read, in lower case and without .gz; None for an unknown one."""
    name = path.name.lower()
    if name.endswith(_COMPRESSED):
        name = name.removesuffix(".gz")
    return next((ending for ending in ENDINGS if name.endswith(ending)), None)


def is_file_name(path: str) -> bool:
    """Whether `path` means a file or folder here rather than a data set of the hub."""
    return ending_of(Path(path)) is not None or path.startswith(("/", ".", "~")) or Path(path).exists()


def read_file(
    path: Path, where: str, columns: Sequence[str], prefix: str, separator: str | None = None, empty: str = "refuse"
) -> Table:
    """The rows of one file. `where` opens every message; `separator` is a name of SEPARATORS, for a csv file alone.
    empty: what of a row with an empty cell: refuse, drop (and count it) or keep, the cell as text of no length.

    Raises UserError, naming the line, for whatever is not as the format's rules say (docs/data.md).
    """
    ending = ending_of(path)
    if ending is None:
        raise UserError(f"{where}: unknown ending {path.suffix or '(none)'}; expected {EXPECTED}")
    if separator is not None and ending != ".csv":
        raise UserError(f"task.data.separator={separator}: is for a csv file; set it to null for {path.name}")
    lists = [fields.bare(name) for name in columns if fields.is_list(name)]
    if lists and ending in (".csv", ".tsv"):
        raise UserError(
            f"{where}: column {shortened(lists[0])} should hold lists, and a cell of {ending} holds one text; give one "
            "column each, or a .jsonl, .json or .parquet file"
        )
    counts = Counts()
    rows: Iterable[tuple[int, Sequence[Any]]]
    if ending == ".parquet":
        unit, rows = "row", arrow.parquet_rows(path, columns, where)
    else:
        lines = read_lines(path, where)
        if ending == ".csv":
            character = SEPARATORS[separator or "comma"]
            unit, rows = "line", delimited.rows(lines, columns, where, counts, character, quotes=True)
        elif ending == ".tsv":
            unit, rows = "line", delimited.rows(lines, columns, where, counts, "\t", quotes=False)
        elif ending == ".txt":
            unit, rows = "line", plain_lines.rows(lines, columns, where, counts, blanks=empty == "keep")
        elif ending == ".jsonl":
            unit, rows = "line", json_rows.line_rows(lines, columns, where, counts)
        else:
            unit, rows = _json(lines, columns, where, counts)
    table = collected(rows, columns, where, unit, prefix, counts, empty)
    return replace(table, class_names=arrow.parquet_class_names(path, columns)) if ending == ".parquet" else table


def is_saved(path: Path) -> bool:
    """Whether save_to_disk wrote this folder."""
    return any((path / name).is_file() for name in (_SEVERAL, _SINGLE))


def read_saved(
    path: Path, where: str, columns: Sequence[str], prefix: str, choose: Choice, empty: str = "refuse"
) -> dict[str, Table]:
    """The splits that `choose` picks from a folder that `datasets` saved, by the names that they have for us.

    A single data set is called train and its ids begin with `prefix`.
    """
    from datasets import load_from_disk

    try:
        dataset = load_from_disk(str(path))
    except Exception as error:
        raise UserError(
            f"{where}: the saved data set cannot be read ({_reason(error)}); save it again with save_to_disk"
        ) from error
    if not isinstance(dataset, dict):
        return {"train": _dataset(dataset, where, columns, prefix, empty)}
    return _splits(dataset, where, columns, choose, empty)


def read_hub(
    name: str,
    where: str,
    config: str | None,
    revision: str | None,
    columns: Sequence[str],
    choose: Choice,
    empty: str = "refuse",
) -> dict[str, Table]:
    """What `choose` picks of the splits of `name` of the hub. Raises UserError if that cannot be loaded."""
    from datasets import load_dataset

    from rowsft.compat.hub import datasets_where_reachable

    try:
        with datasets_where_reachable():
            dataset = load_dataset(name, config, revision=revision)
    except Exception as error:
        raise UserError(
            f"{where}: cannot be loaded from the hub ({_reason(error)}); if it is gated, accept its terms and run "
            "hf auth login; without a network, give a local file"
        ) from error
    return _splits(dataset, where, columns, choose, empty)


def _splits(
    datasets: Mapping[str, Any], where: str, columns: Sequence[str], choose: Choice, empty: str
) -> dict[str, Table]:
    return {
        ours: _dataset(datasets[split], f"{where}, split {split}", columns, split, empty)
        for ours, split in choose(list(datasets)).items()
    }


def _dataset(dataset, where: str, columns: Sequence[str], prefix: str, empty: str) -> Table:
    rows = arrow.dataset_rows(dataset, columns, where)
    table = collected(rows, columns, where, "row", prefix, Counts(), empty)
    return replace(table, class_names=arrow.class_names(dataset.features, columns))


def _json(
    lines: Iterator[str], columns: Sequence[str], where: str, counts: Counts
) -> tuple[str, Iterable[tuple[int, Sequence[Any]]]]:
    """A .json file is one array of objects, or holds an object a line like .jsonl."""
    first: list[str] = []
    for line in lines:
        first.append(line)
        if line.strip():
            break
    if first and first[-1].lstrip().startswith("["):
        return "element", json_rows.array_rows("".join(chain(first, lines)), columns, where)
    if first and re.fullmatch(r"\s*\{\s*", first[-1]):
        raise UserError(
            f"{where}, line {len(first)}: an object over several lines; expected an array of objects, or one object "
            "on each line"
        )
    return "line", json_rows.line_rows(chain(first, lines), columns, where, counts)


def _reason(error: Exception) -> str:
    return shortened(error, 200)
