"""Lines of a text file as they stand: UTF-8 or UTF-16, compressed or not, any line ending; damage is named.

A line ends with a line feed, a carriage return or both, as everywhere here: other separators of Unicode are text.
"""

import codecs
import gzip
import io
import re
import shlex
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from rowsft.errors import UserError

_LINE_END = re.compile(rb"\r\n|\r|\n")
# Four bytes first: UTF-32's mark begins with UTF-16's.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# First bytes of what is often given instead of text, and what to do about it.
_OTHER_KINDS = {
    b"PK\x03\x04": "a zip archive or a spreadsheet's workbook (.xlsx); save it as CSV UTF-8",
    b"\xd0\xcf\x11\xe0": "a spreadsheet's workbook (.xls); save it as CSV UTF-8",
    b"PAR1": "a parquet file; give its name the ending .parquet",
    b"\x1f\x8b": "compressed with gzip; give its name the ending .gz as well, such as .csv.gz",
    b"BZh": "compressed with bzip2; decompress it, or compress it with gzip",
    b"\xfd7zXZ": "compressed with xz; decompress it, or compress it with gzip",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; decompress it, or compress it with gzip",
    b"%PDF": "a PDF document; expected text",
}


def read_lines(path: Path, where: str) -> Iterator[str]:
    """The lines of `path` with their endings, read as they are asked for. `.gz` (in any case) is decompressed.

    `where` opens every message. Raises UserError for a file that cannot be read, holds no text, is in another encoding
    (naming line and byte) or has a NUL byte.
    """
    try:
        with _opened(path) as raw:
            head = raw.read(8)
        for start, kind in _OTHER_KINDS.items():
            if head.startswith(start):
                raise UserError(f"{where}: the file is {kind}")
        encoding = next((name for mark, name in _MARKS.items() if head.startswith(mark)), "utf-8")
        with _opened(path) as raw, io.TextIOWrapper(raw, encoding=encoding, newline="") as lines:
            for number, line in enumerate(lines, 1):
                if "\0" in line:
                    raise UserError(_nul(where, number, path, head))
                yield line
    except UnicodeError as error:
        raise UserError(_wrong_byte(where, path, encoding)) from error
    except (OSError, EOFError, zlib.error) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise UserError(f"{where}: the file cannot be read ({reason})") from error


def _opened(path: Path) -> BinaryIO | gzip.GzipFile:
    return gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb")


def _nul(where: str, number: int, path: Path, head: bytes) -> str:
    advice = "the file is damaged or not a text file"
    sides = {(False, True): "le", (True, False): "be"}
    side = sides.get((head[:1] == b"\0", head[1:2] == b"\0"))
    if side:
        advice = f"it looks like UTF-16 without its mark; convert it: {_iconv(path, f'utf-16{side}')}"
    return f"{where}, line {number}: a NUL byte; {advice}"


def _wrong_byte(where: str, path: Path, encoding: str) -> str:
    """Where the file stops being text in `encoding`, with advice that was tried first."""
    with _opened(path) as raw:
        data = raw.read()
    name = "UTF-8" if encoding == "utf-8-sig" else encoding.upper()
    try:
        data.decode(name)
    except UnicodeDecodeError as error:
        before = data[: error.start]
        # Bytes of a line ending stand for themselves in UTF-8 alone.
        line = 1 + len(_LINE_END.findall(before))
        byte = error.start - max(before.rfind(b"\n"), before.rfind(b"\r"))
        reason = f"byte {byte} of line {line}" if name == "UTF-8" else f"byte {error.start + 1} of the file"
        reason = f"{reason} is 0x{data[error.start]:02X}"
    else:
        reason = "its last character is cut off"
    return f"{where}: not {name} text ({reason}); {_conversion(path, data, name)}"


def _conversion(path: Path, data: bytes, name: str) -> str:
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError:
        text = "\0"
    controls = sum(character < " " and character not in "\t\r\n\f" for character in text)
    if name != "UTF-8" or controls:
        return "the file is damaged or not a text file; save it again as UTF-8"
    return f"save it again as UTF-8, or, if it is Windows-1252 (Western European), {_iconv(path, 'windows-1252')}"


def _iconv(path: Path, encoding: str) -> str:
    new = shlex.quote(f"utf8-{path.name.removesuffix('.gz')}")
    name = shlex.quote(path.name)
    if path.name.lower().endswith(".gz"):
        return f"gzip -dc {name} | iconv -f {encoding} -t utf-8 > {new}"
    return f"iconv -f {encoding} -t utf-8 {name} > {new}"
