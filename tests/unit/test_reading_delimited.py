"""csv and tsv: nothing guessed, quoting by the format's rules, the file's line in every message."""

import csv
import random

import pytest
from reading_tools import by_id, classification, content, labels, pairs, responses, written
from refusals import refusal

BODY = "".join(f"{row['text']},{row['label']}\n" for row in pairs())


def refused(task) -> str:
    return refusal(task.splits)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("one, two,good", "expected 2 as in the header (text, label), got 3 cells; put quote marks"),
        ("only text", "expected 2 as in the header (text, label), got 1 cells; a cell or a comma is missing"),
        ("a text,", "no value in column label"),
        (",good", "no value in column text"),
        ("  ,good", "no value in column text"),
        ('"a" text,good', "a quote mark inside a quoted cell"),
    ],
)
@pytest.mark.parametrize("line", [2, 3, 31])
def test_a_bad_row_is_named_by_its_line_wherever_it_stands(tmp_path, row, expected, line):
    lines = ["text,label", *BODY.splitlines()]
    lines.insert(line - 1, row)
    message = refused(classification(written(tmp_path, "\n".join(lines) + "\n")))
    assert f"data.csv, line {line}: {expected}" in message


def test_lines_are_counted_as_an_editor_does(tmp_path):
    text = 'text,label\r\n"one\r\ntwo\r\n\r\nthree",good\r\n\r\n' + BODY.replace("\n", "\r\n") + "short\r\n"
    assert f"line {7 + 30}: expected 2" in refused(classification(written(tmp_path, text)))
    whole = classification(written(tmp_path, text.removesuffix("short\r\n")))
    assert by_id(whole, "text")["row-0"] == ("one\r\ntwo\r\n\r\nthree",)
    assert whole.about()["counts"]["blank_lines_skipped"] == 1


def test_a_quote_mark_that_is_never_closed_names_the_line_where_it_opens(tmp_path):
    text = "text,label\n" + BODY + '"open,good\n' + BODY
    message = refused(classification(written(tmp_path, text)))
    assert "lines 32 to 62: a quote mark opens a cell and is never closed" in message


def test_cells_agree_with_the_csv_module_whatever_they_hold(tmp_path):
    draw = random.Random(1)
    letters = ['"', ",", "\n", "\r\n", " ", "a", "b", "'", "\t", ";", "\u00e9"]
    rows = [{"text": f"x{''.join(draw.choices(letters, k=8))}{i}", "label": f"l{i % 3}"} for i in range(300)]
    path = tmp_path / "data.csv"
    path.write_bytes(content(rows, "csv"))
    with path.open(newline="") as file:
        expected = [row["text"] for row in csv.DictReader(file)]
    assert [text for (text,) in by_id(classification(path), "text").values()] == expected == [r["text"] for r in rows]


def test_quote_marks_are_text_in_tsv(tmp_path):
    rows = [{**row, "text": f"{chr(34) if i % 10 == 3 else ''}text {i}"} for i, row in enumerate(pairs(40))]
    path = tmp_path / "data.tsv"
    path.write_bytes(content(rows, "tsv"))
    assert [text for (text,) in by_id(classification(path), "text").values()] == [row["text"] for row in rows]
    path.write_text("text\tlabel\na\tgood\tmore\n")
    assert "data.tsv, line 2: expected 2" in refused(classification(path))


def test_a_cell_may_be_longer_than_the_csv_modules_limit(tmp_path):
    limit = csv.field_size_limit()
    long = "word " * 60_000
    path = written(tmp_path, f"text,label\n{BODY}{long},good\n")
    assert by_id(classification(path), "text")["row-30"] == (long,)
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize("seen", [["1.1", "1.10", "1.2"], ["02116", "2116", "116"], ["1", "0.5", "unsure"]])
def test_labels_that_look_like_numbers_are_text(tmp_path, seen):
    expected = [seen[i % 3] for i in range(30)]
    text = "text,label\n" + "".join(f"text {i},{label}\n" for i, label in enumerate(expected))
    assert labels(classification(written(tmp_path, text))) == expected


def test_a_word_after_ten_thousand_numbers_is_a_class(tmp_path):
    text = "text,label\n" + "".join(f"{i},{i % 2}\n" for i in range(10_000)) + "10000,unsure\n"
    task = classification(written(tmp_path, text))
    assert task.classes == ["0", "1", "unsure"] and by_id(task, "text")["row-7"] == ("7",)


def test_responses_are_text_as_written(tmp_path):
    seen = ["007", "3.50", "1e5", "1_0", "True", "NA", "null", "2024-03-12", " x "]
    text = "prompt,response\n" + "".join(f"ask {i},{value}\n" for i, value in enumerate(seen))
    found = by_id(responses(written(tmp_path, text)), "response")
    assert [value for (value,) in found.values()] == seen


@pytest.mark.parametrize("columns", [{"text": 0, "label": 1}, {"text": "0", "label": "1"}])
def test_a_header_of_numbers_is_found(tmp_path, columns):
    task = classification(written(tmp_path, f"0,1\n{BODY}"), columns)
    assert by_id(task, "text")["row-3"] == ("text number 3",)
    task = responses(written(tmp_path, f"0,1\n{BODY}"), prompt="{0}: ", response="{1}")
    assert by_id(task, "prompt", "response")["row-3"] == ("text number 3: ", "bad")


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("Text,label", "no column text; it has Text, label; did you mean Text?"),
        ("texts,label", "did you mean texts?"),
        ("a,b", "no column text; it has a, b; name the right one"),
        ("text,label,text", "column text stands twice in the header"),
        ("text;label", "no column text; it has text;label; the header is separated by semicolons: set task.data.separ"),
        ("text\tlabel", "set task.data.separator=tab"),
    ],
)
def test_a_header_that_does_not_fit_is_shown(tmp_path, header, expected):
    assert expected in refused(classification(written(tmp_path, f"{header}\n{BODY}")))


def test_blanks_around_names_and_unnamed_columns_do_not_matter(tmp_path):
    body = "".join(f"{line},,\n" for line in BODY.splitlines())
    task = classification(written(tmp_path, f" text , label,,\n{body}"))
    assert by_id(task, "text")["row-0"] == ("text number 0",)


@pytest.mark.parametrize(("name", "mark"), [("semicolon", ";"), ("tab", "\t"), ("pipe", "|"), ("comma", ",")])
def test_another_separator_can_be_set(tmp_path, name, mark):
    path = written(tmp_path, f"text,label\n{BODY}\n".replace(",", mark) + f'"a{mark} b"{mark}good\n')
    task = classification({"path": str(path), "separator": name})
    assert by_id(task, "text")["row-30"] == (f"a{mark} b",)


def test_a_separator_is_for_csv_alone(tmp_path):
    path = written(tmp_path, "text\tlabel\n", "data.tsv")
    assert "task.data.separator=pipe: is for a csv file" in refused(
        classification({"path": str(path), "separator": "pipe"})
    )


@pytest.mark.parametrize(
    ("text", "expected"), [("", "the file is empty"), ("\n \n", "the file is empty"), ("text,label\n", "no rows")]
)
def test_nothing_to_read(tmp_path, text, expected):
    assert f"data.csv: {expected}" in refused(classification(written(tmp_path, text)))


def test_a_name_over_two_lines_stays_on_one_in_messages(tmp_path):
    path = written(tmp_path, f'"te\nxt",label\n{BODY},good\n')
    assert "line 33: no value in column te xt" in refused(classification(path, {"text": "te\nxt"}))
    assert "no column text; it has te xt, label" in refused(classification(path))


@pytest.mark.parametrize("first", ["sep=;\n", "sep=;\r\n", '"sep=;"\n'])
def test_a_spreadsheets_line_about_the_separator_is_no_header(tmp_path, first):
    path = written(tmp_path, first + f"text,label\n{BODY}".replace(",", ";"))
    task = classification({"path": str(path), "separator": "semicolon"})
    assert by_id(task, "text")["row-0"] == ("text number 0",)
    assert "set task.data.separator=semicolon" in refused(classification(path))


def test_line_ends_may_be_mixed(tmp_path):
    path = written(tmp_path, 'text,label\r\na,x\nb,y\r"c\nd",x\r\n\r\r\ne,y\nshort\n')
    assert "line 9: expected 2" in refused(classification(path))
    task = classification(written(tmp_path, path.read_bytes().decode().removesuffix("short\n")))
    assert [text for (text,) in by_id(task, "text").values()] == ["a", "b", "c\nd", "e"]
