"""Reading back what an offline W&B run wrote."""

import json
import struct
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
