"""Files that are either whole or absent: written beside their place, flushed to disk, then renamed."""

import csv
import errno
import fcntl
import hashlib
import io
import json
import math
import os
import stat
import sys
import time
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from rowsft.errors import UserError, shortened
from rowsft.output import escape
from rowsft.record import LARGEST
from rowsft.store.machine import NO_FLOCK, here

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM}
# Many times the depth of any file of the suite, and well before Python's own limit, which ends whoever walks the tree.
_DEEPEST = 100
_ANY_DIGIT = bytes.maketrans(b"123456789", b"0" * 9)
# A record of the largest models is a few megabytes; whatever is larger is no record, and would fill the memory.
_LARGEST_BYTES = 64 * 2**20
_DAY_SECONDS = 24 * 3600


@contextmanager
def explained(folder: Path):
    """Turn an operating-system refusal inside the block into a UserError that names `folder` and what to do."""
    elsewhere = "choose another folder (store=FOLDER, or --out FOLDER of a report)"
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            reason, advice = "no space is left there", f"free some or {elsewhere}"
        elif error.errno in _REFUSED:
            reason, advice = "access is refused", f"make it writable or {elsewhere}"
        else:
            reason, advice = "it cannot be used", f"check the path or {elsewhere}"
        raise UserError(f"{folder}: {reason} ({type(error).__name__}: {error}); {advice}") from error


def read_regular(path: Path, largest: int = _LARGEST_BYTES) -> bytes:
    """The bytes of a file.

    Raises ValueError for what is none (a pipe would keep its reader waiting for ever) and for one of more than
    `largest` bytes.
    """
    facts = Path(path).stat()
    if not stat.S_ISREG(facts.st_mode):
        raise ValueError("not a regular file")
    if facts.st_size > largest:
        raise ValueError(f"{facts.st_size:,} bytes, expected at most {largest:,}")
    return Path(path).read_bytes()


def read_json(path: Path, strict: bool = False) -> Any:
    """What a JSON file holds.

    Raises ValueError for what is no JSON, and for what no file of the suite holds: endless nesting, integers of
    thousands of digits. `strict` also refuses what JSON has not or leaves open, and what no float can hold: NaN and
    Infinity, numbers beyond every float, a key twice in one mapping, half a character.
    """
    too_deep = ValueError(f"nested more than {_DEEPEST} deep")
    content = read_regular(path)
    try:
        value = json.loads(content, **(_strict_hooks(content) if strict else {"parse_int": _integer}))
    except RecursionError:
        raise too_deep from None
    if _nests_deep(value):
        raise too_deep
    if strict and b"\\ud" in content.lower():
        # Half of a surrogate pair is read without a complaint and cannot be written to any file.
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _strict_hooks(content: bytes) -> dict:
    hooks = {"parse_float": _finite, "parse_constant": _finite, "object_pairs_hook": _without_duplicates}
    # Looking for a long row of digits is far quicker than a hook for every integer.
    if b"0" * sys.float_info.max_10_exp in content.translate(_ANY_DIGIT):
        hooks["parse_int"] = _moderate_integer
    return hooks


def _nests_deep(value: object) -> bool:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(_DEEPEST):
        inner = (node.values() if type(node) is dict else node for node in level)
        level = [item for items in inner for item in items if type(item) is dict or type(item) is list]
        if not level:
            return False
    return True


def _integer(digits: str) -> int:
    try:
        return int(digits)
    except ValueError:
        most = sys.get_int_max_str_digits()
        raise ValueError(f"the integer {shortened(digits)} is longer than {most:,} digits") from None


def _moderate_integer(digits: str) -> int:
    if len(digits) > sys.float_info.max_10_exp:
        raise ValueError(f"the integer {shortened(digits)} is beyond every float")
    return int(digits)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{shortened(text)} is no finite number")
    return number


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {shortened(repr(twice))} stands twice in one mapping")
    return value


def write_atomic(path: Path, content: bytes) -> str:
    """Put `content` at `path` in one step and return its sha256 (hex).

    Whatever stood there before stays whole until the new file is on disk. Raises UserError when the folder is full or
    cannot be written.
    """
    path = Path(path)
    with explained(path.parent):
        temporary = path.with_name(f".{path.name}.{here(path.parent)}.{os.getpid()}.tmp")
        try:
            # Without a buffer: closing one would try again what a full disk has refused.
            with _owned(temporary) as stream:
                view = memoryview(content)
                while view:
                    view = view[stream.write(view) :]
                os.fsync(stream.fileno())
                temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        flush(path.parent)
    return hashlib.sha256(content).hexdigest()


def _owned(temporary: Path) -> io.FileIO:
    """A new file that `remove_leftovers` leaves alone while this process lives and has it open."""
    while True:
        stream = temporary.open("wb", buffering=0)
        try:
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno in NO_FLOCK:
                return stream
            raise
        # Between the two lines another process may have taken it for a leftover.
        with suppress(FileNotFoundError):
            if os.path.samestat(temporary.stat(), os.fstat(stream.fileno())):
                return stream
        stream.close()


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of writers that are gone, as far as they may be removed; those in use stay.

    `flock` tells which are in use where they were written from this machine and mount; others stay for a day.
    """
    with suppress(OSError):
        place = here(folder)
        for path in Path(folder).glob(".*.tmp"):
            with suppress(OSError):
                if f".{place}." not in path.name and time.time() - path.lstat().st_mtime < _DAY_SECONDS:
                    continue
                descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    # What was opened may have its final name by now, and the path be the writer's next file.
                    if os.path.samestat(path.stat(), os.fstat(descriptor)):
                        path.unlink()
                finally:
                    os.close(descriptor)


def write_jsonl(path: Path, rows: list[dict]) -> str:
    """One JSON object a line, atomically; returns the sha256. A number that is not finite becomes null."""
    lines = [json.dumps(jsonable(row)[0], ensure_ascii=False, allow_nan=False) for row in rows]
    return write_atomic(path, "".join(line + "\n" for line in lines).encode())


def write_csv(path: Path, rows: list[dict]) -> str:
    """A CSV with a header (the union of the rows' keys, in order of appearance), atomically; returns the sha256."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writerow({column: escape.csv_cell(column) for column in columns})
    writer.writerows({key: escape.csv_cell(value) for key, value in row.items()} for row in rows)
    return write_atomic(path, stream.getvalue().encode())


def sha256(path: Path) -> str:
    """sha256 (hex) of a file; of a folder, that of the sorted lines `<relative path> <sha256>` of its files."""
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        listing = "".join(f"{file.relative_to(path).as_posix()} {sha256(file)}\n" for file in files)
        return hashlib.sha256(listing.encode()).hexdigest()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content_of(path: Path) -> str:
    """`sha256` of a file, which a process reads once, unless its size, time or inode change."""
    facts = path.stat()
    return _content(path, facts.st_size, facts.st_mtime_ns, facts.st_ino)


@lru_cache(maxsize=1024)
def _content(path: Path, *_facts: int) -> str:
    return sha256(path)


def jsonable(value: Any, where: str = "") -> tuple[Any, list[str]]:
    """`value` as plain JSON, and the keys whose number was nan, infinite or beyond LARGEST: they become null."""
    if isinstance(value, dict):
        pairs = {str(key): jsonable(item, f"{where}.{key}" if where else str(key)) for key, item in value.items()}
        return {key: item for key, (item, _) in pairs.items()}, [name for _, bad in pairs.values() for name in bad]
    if isinstance(value, list | tuple):
        items = [jsonable(item, f"{where}[{index}]") for index, item in enumerate(value)]
        return [item for item, _ in items], [name for _, bad in items for name in bad]
    if isinstance(value, Path):
        return str(value), []
    if getattr(value, "shape", None) == () and hasattr(value, "item"):  # a scalar of numpy or torch
        value = value.item()
    if isinstance(value, float) and not abs(value) <= LARGEST:
        return None, [where]
    if value is None or isinstance(value, bool | int | float | str):
        return value, []
    raise TypeError(f"{where or 'value'} is a {type(value).__name__}, which a record cannot hold")


def flush(path: Path) -> None:
    """Put a file's bytes, or the names in a folder, on the disk, where they survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
