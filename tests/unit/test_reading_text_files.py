"""Encodings, line endings, compression and damage of text files; messages name the line and the byte."""

import gzip
import subprocess

import pytest
from reading_tools import by_id, classification, content, pairs

from rowsft.errors import UserError
from rowsft.tasks.reading.text_file import read_lines

ROWS = [{**row, "text": f"caf\u00e9 \u4e2d {row['text']}"} for row in pairs()]
PLAIN = content(ROWS, "csv").decode()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("ending", ["csv", "csv.gz"])
def test_every_encoding_with_a_mark_and_every_line_end_gives_the_same_rows(tmp_path, encoding, end, ending):
    marks = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}
    data = marks.get(encoding, b"") + PLAIN.replace("\n", end).encode(encoding)
    path = tmp_path / f"data.{ending}"
    path.write_bytes(gzip.compress(data) if ending.endswith("gz") else data)
    assert [text for text, _ in by_id(classification(path), "text", "label").values()] == [row["text"] for row in ROWS]


def test_other_separators_of_unicode_are_text(tmp_path):
    rows = [{**row, "text": f"a\u2028b\x85c\x0b\x1c{i}"} for i, row in enumerate(pairs(9))]
    for kind in ("csv", "tsv", "jsonl"):
        path = tmp_path / f"data.{kind}"
        path.write_bytes(content(rows, kind))
        assert [text for (text,) in by_id(classification(path), "text").values()] == [row["text"] for row in rows]


def said(path) -> str:
    with pytest.raises(UserError) as error:
        list(read_lines(path, f"task.data.path={path.name}"))
    assert "\n" not in str(error.value) and str(error.value).startswith(f"task.data.path={path.name}")
    return str(error.value)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_byte_that_is_not_utf8_is_named_and_the_advice_works(tmp_path, end, mark):
    path = tmp_path / "my data.csv"
    path.write_bytes(mark + end.join([b"text,label", "caf\u00e9,good".encode(), b"caf\xe9,bad", b""]))
    message = said(path)
    assert "not UTF-8 text (byte 4 of line 3 is 0xE9)" in message
    command = message[message.index("iconv") :]
    if not mark:
        # The file with the UTF-8 line in it is a mixture; of a pure one the command must give the text.
        path.write_bytes(b"text,label\ncaf\xe9 \x80,bad\n")
        subprocess.run(command, shell=True, cwd=tmp_path, check=True)
        assert (tmp_path / "utf8-my data.csv").read_text(encoding="utf-8") == "text,label\ncaf\u00e9 \u20ac,bad\n"


def test_a_far_byte_is_named_too(tmp_path):
    path = tmp_path / "data.csv"
    path.write_bytes(b"text,label\n" + b"good text,good\n" * 50_000 + b"x\xff,bad\n")
    assert "byte 2 of line 50002 is 0xFF" in said(path)


def test_utf16_without_its_mark_gets_advice_that_works(tmp_path):
    for encoding in ("utf-16-le", "utf-16-be"):
        path = tmp_path / "data.csv"
        path.write_bytes(PLAIN.replace("caf\u00e9 \u4e2d ", "").encode(encoding))
        message = said(path)
        assert "line 1: a NUL byte; it looks like UTF-16" in message
        subprocess.run(message[message.index("iconv") :], shell=True, cwd=tmp_path, check=True)
        assert classification(tmp_path / "utf8-data.csv").splits()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"text,label\na,good\nb\0c,bad\n", "line 3: a NUL byte; the file is damaged"),
        (bytes(range(1, 256)) * 4, "not UTF-8 text (byte 115 of line 3 is 0x80); the file is damaged"),
        (b"\x89PNG\r\n\x1a\n\0\0\0", "not UTF-8 text (byte 1 of line 1 is 0x89); the file is damaged"),
        (b"PK\x03\x04rest", "a spreadsheet's workbook (.xlsx); save it as CSV UTF-8"),
        (b"PAR1rest", "a parquet file; give its name the ending .parquet"),
        (gzip.compress(b"text,label\n", mtime=0), "compressed with gzip; give its name the ending .gz"),
        (b"\xff\xfea\0b", "not UTF-16 text"),
        (b"\xff\xfe\x00\xd8a\0", "not UTF-16 text (byte 3 of the file"),
    ],
)
def test_what_is_no_text_file_is_said_in_one_line(tmp_path, data, expected):
    path = tmp_path / "data.csv"
    path.write_bytes(data)
    assert expected in said(path)


@pytest.mark.parametrize(
    "data",
    [
        b"text,label\na,good\n",
        gzip.compress(PLAIN.encode(), mtime=0)[:-20],
        gzip.compress(PLAIN.encode(), mtime=0)[:40] + b"\0" * 9,
    ],
    ids=["no gzip", "cut short", "damaged"],
)
def test_what_is_no_whole_gzip_file_is_said_in_one_line(tmp_path, data):
    path = tmp_path / "data.csv.gz"
    path.write_bytes(data)
    assert "cannot be read" in said(path)


def test_a_file_that_may_not_be_read_and_a_folder(tmp_path):
    assert "cannot be read (No such file or directory)" in said(tmp_path / "gone.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match="folder.csv: is a folder; expected a file"):
        classification(tmp_path / "folder.csv").splits()
