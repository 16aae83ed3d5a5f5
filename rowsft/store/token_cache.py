"""Encoded examples kept in the store, so that the runs of a sweep tokenise once: `<store>/tokenised/<hash>.tokens`."""

import hashlib
import json
import logging
import os
from contextlib import suppress
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from rowsft.errors import UserError
from rowsft.store.files import explained, read_regular, remove_leftovers, write_atomic

if TYPE_CHECKING:
    from numpy import ndarray

log = logging.getLogger(__name__)

#: All files together; those that were used least recently go.
LARGEST_BYTES = 2 * 2**30
_DIGEST = 64


class TokenCache:
    """Encoded examples by what determines them. Losing a file costs time alone, so no trouble with one ends a run.

    A file is whole or absent: processes may read, write and remove one key at once.
    """

    def __init__(self, store: str | Path):
        self.folder = Path(store) / "tokenised"

    def path(self, key: dict) -> Path:
        """Where examples of `key` (JSON-able) are kept."""
        return self.folder / f"{hashlib.sha256(_text(key).encode()).hexdigest()[:24]}.tokens"

    def get(self, key: dict) -> list[dict] | None:
        """Return the examples put for `key`; None for none, or a damaged file."""
        from safetensors.numpy import load

        path = self.path(key)
        try:
            content = read_regular(path, LARGEST_BYTES)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("%s cannot be read (%s); tokenised again", path, error)
            return None
        # A digest in front: no damage inside an array would show otherwise.
        body = memoryview(content)[_DIGEST:]
        if hashlib.sha256(body).hexdigest().encode() != content[:_DIGEST]:
            log.warning("%s is damaged; tokenised again", path)
            return None
        with suppress(OSError):
            # The time of use decides what goes first.
            os.utime(path)
        return _unpacked(load(bytes(body)))

    def put(self, key: dict, examples: list[dict]) -> None:
        """Keep `examples`; does nothing for others than dicts of integers, floats and lists of integers, all alike."""
        from safetensors.numpy import save

        arrays = _packed(examples)
        if arrays is None or sum(array.nbytes for array in arrays.values()) > LARGEST_BYTES // 4:
            return
        body = save(arrays)
        try:
            with explained(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path(key), hashlib.sha256(body).hexdigest().encode() + body)
        except UserError as error:
            log.warning("tokenised examples are not kept: %s", error)
            return
        self._shrink()

    def _shrink(self) -> None:
        """Remove what killed writers left, and the files that were used least recently until the others have at most
        LARGEST_BYTES."""
        remove_leftovers(self.folder)
        found = []
        for path in self.folder.glob("*.tokens"):
            # Another process may remove it, too.
            with suppress(OSError):
                facts = path.stat()
                found.append((facts.st_mtime_ns, facts.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= LARGEST_BYTES:
                return
            with suppress(OSError):
                path.unlink(missing_ok=True)
            total -= size


def _packed(examples: list[dict]) -> "dict[str, ndarray] | None":
    """One array a key of numbers, two a key of lists: all values, and the length of each; None for anything else.

    An array's name begins with the key's place, since files keep no order.
    """
    import numpy as np

    if not examples or any(example.keys() != examples[0].keys() for example in examples):
        return None
    arrays = {}
    for place, name in enumerate(examples[0]):
        column = [example[name] for example in examples]
        kinds = set(map(type, column))
        values = list(chain.from_iterable(column)) if kinds == {list} else column
        numbers = set(map(type, values))
        if numbers <= {int} and -(2**31) <= min(values, default=0) <= max(values, default=0) < 2**31:
            arrays[f"{place}/values/{name}"] = np.array(values, np.int32)
        elif numbers == {float} and kinds == {float}:
            arrays[f"{place}/values/{name}"] = np.array(values, np.float64)
        else:
            return None
        if kinds == {list}:
            arrays[f"{place}/lengths/{name}"] = np.array(list(map(len, column)), np.int64)
    return arrays


def _unpacked(arrays: "dict[str, ndarray]") -> list[dict]:
    columns: dict[str, list] = {}
    parts = {tuple(name.split("/", 2)): array.tolist() for name, array in arrays.items()}
    for place, kind, name in sorted(parts, key=lambda part: int(part[0])):
        if kind == "values":
            values, lengths = parts[place, kind, name], parts.get((place, "lengths", name))
            bounds = pairwise(accumulate(lengths, initial=0)) if lengths is not None else None
            columns[name] = values if bounds is None else [values[begin:end] for begin, end in bounds]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _text(key: dict) -> str:
    return json.dumps(key, sort_keys=True, separators=(",", ":"), allow_nan=False)
