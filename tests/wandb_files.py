"""W&B in a process of its own, and reading back what an offline run wrote."""

import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

BLOCK_BYTES, HEADER = 32768, struct.Struct("<IHB")


def read_records(folder: Path) -> list:
    """Records of the one `.wandb` file below `folder`: LevelDB's log format, plain checksums, a 7-byte header."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.rglob("*.wandb")
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    records, parts, position = [], [], 7
    while position + HEADER.size <= len(data):
        left_in_block = BLOCK_BYTES - position % BLOCK_BYTES
        if left_in_block < HEADER.size:
            position += left_in_block
            continue
        checksum, length, kind = HEADER.unpack_from(data, position)
        part = data[position + HEADER.size : position + HEADER.size + length]
        assert checksum == zlib.crc32(part, zlib.crc32(bytes([kind])))
        parts.append(part)
        if kind in (1, 4):  # a whole record or the last part of one
            records.append(Record.FromString(b"".join(parts)))
            parts = []
        position += HEADER.size + length
    assert not parts
    return records


def items(entries) -> dict:
    return {"/".join([e.key] if e.key else e.nested_key): json.loads(e.value_json) for e in entries}


def run_python(code: str, folder: Path, **variables: str) -> subprocess.CompletedProcess:
    """Run `code` in a fresh process (W&B keeps one set of settings per process) without any credentials of the user."""
    return _run(["-c", code], folder, variables)


def rowsft(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """Run the command `rowsft` in the same way."""
    return _run(["-m", "rowsft.cli", *arguments], folder, variables)


def _run(arguments: list[str], folder: Path, variables: dict[str, str]) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    environment |= {"HOME": str(folder), "NETRC": str(folder / "netrc"), "WANDB_CONFIG_DIR": str(folder), **variables}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


def history(records: list) -> list[dict]:
    """The rows of the history."""
    return [items(record.history.item) for record in records if record.HasField("history")]


def summary(records: list) -> dict:
    """The last value of everything in the summary."""
    values = {}
    for record in records:
        if record.HasField("summary"):
            values |= items(record.summary.update)
    return values
