"""What a name means in arrow columns of objects and lists (see fields.py)."""

from collections.abc import Callable
from typing import Any

from rowsft.errors import shortened
from rowsft.tasks.reading import fields
from rowsft.tasks.reading.cells import NotText
from rowsft.tasks.reading.columns import MissingColumn, missing


def cells(batch, name: str, where: str, texts: Callable[[Any], list[Any]]) -> list[Any]:
    """One cell a row of a record batch or table: a text, or a list of texts where the name ends with [].

    texts: makes one text, None or NotText of every value of a flat arrow array. Raises MissingColumn for a field that
    the objects lack.
    """
    present = batch.schema.names
    column, keys = batch.column(fields.top(name, present)), fields.path(name, present)
    if not keys and not fields.is_list(name):
        return texts(column)
    reached = _reached(_whole(column), keys, name, where, fields.top(name, present))
    return _lists(reached, texts) if fields.is_list(name) else texts(reached)


def _whole(column):
    """One array of a column that may be in chunks."""
    import pyarrow as pa

    if not isinstance(column, pa.ChunkedArray):
        return column
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def _reached(array, keys: list[str], name: str, where: str, at: str):
    import pyarrow as pa
    from pyarrow import compute, types

    if not keys:
        return array
    if types.is_struct(array.type):
        names = [array.type.field(i).name for i in range(array.type.num_fields)]
        if keys[0] not in names:
            raise MissingColumn(missing(fields.bare(name), [f"{at}.{key}" for key in names], where))
        return _reached(compute.struct_field(array, keys[0]), keys[1:], name, where, f"{at}.{keys[0]}")
    if _is_list(array.type):
        # 64-bit offsets hold every kind of list; those of null lists are equal, as of empty ones.
        array = array.cast(pa.large_list(array.type.value_type))
        return pa.LargeListArray.from_arrays(array.offsets, _reached(array.values, keys, name, where, at))
    raise MissingColumn(
        f"{where}: no column {shortened(fields.bare(name))}; {shortened(at)} holds values of the type {array.type}"
    )


def _is_list(kind) -> bool:
    from pyarrow import types

    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _lists(array, texts: Callable[[Any], list[Any]]) -> list[Any]:
    from pyarrow import compute

    if not _is_list(array.type):
        return [
            NotText(f"values of the type {array.type}") if valid else None for valid in array.is_valid().to_pylist()
        ]
    values = iter(texts(array.flatten()))
    lengths = compute.list_value_length(array).to_pylist()
    return [None if length is None else [next(values) for _ in range(length)] for length in lengths]
