"""What looks alike and is not: labels with characters that nobody sees, quote marks that quote nothing."""

import pytest
from reading_tools import by_id, classification, pairs, write, written

from rowsft.errors import UserError


@pytest.mark.parametrize("other", ["caf\u00e9\u200b", "cafe\u0301", "\ufeffcaf\u00e9"])
def test_labels_that_look_alike_are_pointed_out(tmp_path, other):
    rows = [{"text": f"text {i}", "label": ["caf\u00e9", other, "bar"][i % 3]} for i in range(30)]
    task = classification(write(tmp_path, rows, "jsonl"))
    (warning,) = task.about()["warnings"]
    assert warning.startswith("labels that look alike are classes of their own: ") and ascii(other) in warning


def test_labels_that_differ_to_the_eye_are_not(tmp_path):
    rows = [{"text": f"text {i}", "label": ["very good", "very_good", "bar"][i % 3]} for i in range(30)]
    assert classification(write(tmp_path, rows, "jsonl")).about()["warnings"] == []


@pytest.mark.parametrize("space", [" ", "\t", "  "])
def test_a_quote_mark_after_a_blank_is_refused_in_csv(tmp_path, space):
    rows = "".join(f'{row["text"]},{space}"{row["label"]}"\n' for row in pairs())
    expected = 'line 2: a blank stands before the quote mark of "good", which then quotes nothing; put the mark right'
    with pytest.raises(UserError, match=expected):
        classification(written(tmp_path, f"text,label\n{rows}")).splits()
    with pytest.raises(UserError, match='line 1: a blank stands before the quote mark of "label"'):
        classification(written(tmp_path, f'"text",{space}"label"\n{rows}')).splits()


def test_blanks_and_quote_marks_inside_a_quoted_cell_are_text(tmp_path):
    body = "".join(f'" ""number {i}""",{row["label"]}\n' for i, row in enumerate(pairs()))
    found = by_id(classification(written(tmp_path, f"text,label\n{body}")), "text")
    assert found["row-3"] == (' "number 3"',)
    # One mark, as in inches, is text as well.
    body = "".join(f' "number {i} inches,{row["label"]}\n' for i, row in enumerate(pairs()))
    assert by_id(classification(written(tmp_path, f"text,label\n{body}")), "text")["row-3"] == (' "number 3 inches',)


def test_a_quoted_header_of_a_tsv_file_is_explained(tmp_path):
    body = "".join(f'"{row["text"]}"\t"{row["label"]}"\n' for row in pairs())
    expected = "quote marks are text here; for quoted cells name the file .csv and set task.data.separator"
    with pytest.raises(UserError, match=expected):
        classification(written(tmp_path, f'\ufeff"text"\t"label"\n{body}', "data.tsv")).splits()
    quoted = written(tmp_path, f'\ufeff"text"\t"label"\n{body}')
    assert by_id(classification({"path": str(quoted), "separator": "tab"}), "text")["row-0"] == (pairs()[0]["text"],)
