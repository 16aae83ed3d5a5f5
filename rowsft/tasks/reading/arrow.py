"""Arrow columns as text: of parquet files, saved data sets and data sets of the hub.

Text stays as it is. Other types are written the way their values read: 3, 0.5 (the shortest digits that give the same
number), 1.10 for a decimal of two places, true, 2024-03-12, 2024-03-12 10:30:00.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rowsft.errors import UserError
from rowsft.tasks.reading import arrow_fields, fields
from rowsft.tasks.reading.cells import WORDS, NotText
from rowsft.tasks.reading.columns import positions

_BATCH = 16384
# A fraction of a second in arrow's text has as many digits as its unit: zeros at its end say nothing.
_FRACTION = re.compile(r"\.(\d*?)0+(?=$|[Z+-])")


def parquet_rows(path: Path, columns: Sequence[str], where: str) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """(row from 1, cells of `columns`) of a parquet file; the other columns are not read."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            tops = _tops(columns, file.schema_arrow.names, where)
            yield from batch_rows(file.iter_batches(batch_size=_BATCH, columns=tops), columns, where)
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where}: cannot be read as parquet ({reason}); check the file") from error


def dataset_rows(dataset, columns: Sequence[str], where: str) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """(row from 1, cells of `columns`) of a `datasets.Dataset`."""
    tops = _tops(columns, dataset.column_names, where)
    batches = dataset.select_columns(tops).with_format("arrow").iter(batch_size=_BATCH)
    return batch_rows(batches, columns, where)


def class_names(features: Mapping[str, Any], columns: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """{column: the name of every class number} of those columns that hold class numbers by a data set's `features`."""
    from datasets import ClassLabel

    kinds = {name: features[name] for name in columns if name in features}
    return {name: tuple(kind.names) for name, kind in kinds.items() if isinstance(kind, ClassLabel)}


def parquet_class_names(path: Path, columns: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The same of a parquet file that `datasets` wrote, as the hub's are; of any other none."""
    from pyarrow import parquet

    described = (parquet.read_schema(path).metadata or {}).get(b"huggingface", b"{}")
    features = json.loads(described).get("info", {}).get("features") or {}
    kinds = {name: features.get(name) for name in columns}
    return {
        name: tuple(kind["names"])
        for name, kind in kinds.items()
        if isinstance(kind, dict) and kind.get("_type") == "ClassLabel" and kind.get("names")
    }


def _tops(columns: Sequence[str], present: Sequence[str], where: str) -> list[str]:
    """The columns to be read, each once. Raises MissingColumn."""
    tops = [fields.top(name, present) for name in columns]
    positions(tops, present, where)
    return list(dict.fromkeys(tops))


def batch_rows(batches: Iterable, columns: Sequence[str], where: str) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """(row from 1, cells) of record batches or arrow tables that hold `columns`, or the columns around them."""
    number = 0
    for batch in batches:
        for cells in zip(*(arrow_fields.cells(batch, name, where, _texts) for name in columns), strict=True):
            number += 1
            yield number, cells


def _texts(column) -> list[Any]:
    """One text, None or NotText a value."""
    import pyarrow as pa
    from pyarrow import types

    if isinstance(column, pa.ChunkedArray):
        return [text for chunk in column.chunks for text in _texts(chunk)]
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return _texts(column.storage)
    if types.is_dictionary(kind):
        return _texts(column.dictionary_decode())
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind) or types.is_null(kind):
        return _decoded(column)
    if types.is_boolean(kind):
        return [value if value is None else WORDS[value] for value in column.to_pylist()]
    if types.is_integer(kind):
        return [value if value is None else str(value) for value in column.to_pylist()]
    if types.is_decimal(kind):
        # Not str(): it writes 0.0000000000 as 0E-10.
        return [value if value is None else f"{value:f}" for value in column.to_pylist()]
    if types.is_floating(kind):
        return _floats(column)
    if types.is_date(kind) or types.is_time(kind) or types.is_timestamp(kind):
        return [value and _FRACTION.sub(_fraction, value) for value in column.cast(pa.string()).to_pylist()]
    return [NotText(f"values of the type {kind}") if valid else None for valid in column.is_valid().to_pylist()]


def _decoded(column) -> list[Any]:
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_one(value) for value in column]


def _one(value) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return NotText("bytes that are not UTF-8")


def _floats(column) -> list[str | None]:
    """NaN is how data frames write a gap."""
    # numpy writes the shortest digits of a float's own precision.
    values = column.to_numpy(zero_copy_only=False)
    return [None if value != value else _shortest(value) for value in values]


def _shortest(value) -> str:
    return repr(float(value)) if value.itemsize == 8 else str(value)


def _fraction(match: re.Match) -> str:
    return f".{match[1]}" if match[1] else ""
