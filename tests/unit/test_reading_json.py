"""JSON arrays and JSON lines: values as they are written, lists and objects refused, lines and elements counted."""

import json

import pytest
from reading_tools import by_id, classification, labels, pairs, responses
from refusals import refusal

GOOD = [json.dumps(row) for row in pairs()]


def written(tmp_path, lines, kind):
    path = tmp_path / f"data.{kind}"
    path.write_text(f"[{', '.join(lines)}]" if kind == "json" else "\n".join(lines))
    return path


def place(kind, number):
    return f"data.{kind}, {'element' if kind == 'json' else 'line'} {number}: "


def refused(task) -> str:
    return refusal(task.splits)


@pytest.mark.parametrize("kind", ["json", "jsonl"])
@pytest.mark.parametrize("number", [1, 2, 31])
@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ('{"text": "a", "label": ["x", "y"]}', "column label holds a list; expected text"),
        ('{"text": {"a": null}, "label": "x"}', "column text holds an object"),
        ('{"text": "a", "label": null}', "no value in column label"),
        ('{"text": "a", "label": ""}', "no value in column label"),
        ('{"text": " \\n", "label": "x"}', "no value in column text"),
        ('{"text": "a", "label": NaN}', "column label holds NaN; expected text"),
        ('{"text": "\\ud83d", "label": "x"}', "half of a surrogate pair"),
        ('{"text": "a\\u0000", "label": "x"}', "the character NUL"),
        ('{"text": "a", "text": "b", "label": "x"}', "the key text stands twice"),
        ('["a", "x"]', "expected an object"),
        ('"a"', "expected an object"),
        ("12", "expected an object"),
        ('{"text": "a", ', "cannot be read as JSON"),
        ("{'text': 'a'}", "cannot be read as JSON"),
        (f'{{"text": {"[" * 100_000}', "nested too deeply"),
    ],
)
def test_a_bad_row_is_named_by_its_place(tmp_path, kind, number, row, expected):
    lines = list(GOOD)
    lines.insert(number - 1, row)
    message = refused(classification(written(tmp_path, lines, kind)))
    assert place(kind, number) + expected in message or (place(kind, number) in message and expected in message)


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_a_row_without_the_column_has_a_gap_and_a_column_that_all_lack_is_a_wrong_name(tmp_path, kind):
    gap = '{"text": "a"}'
    for number, lines in ((31, [*GOOD, gap]), (1, [gap, *GOOD]), (1, [gap, gap, *GOOD])):
        message = refused(classification(written(tmp_path, lines, kind)))
        assert place(kind, number) + "no value in column label" in message
    kept = classification({"path": str(written(tmp_path, [gap, *GOOD, gap], kind)), "empty": "drop"}).splits()
    assert sorted(int(row["id"][4:]) for split in kept.values() for row in split) == list(range(1, 31))
    other = [line.replace("label", "Label") for line in GOOD]
    message = refused(classification(written(tmp_path, other, kind)))
    assert "no column label; it has text, Label; did you mean Label?" in message


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_numbers_words_and_dates_are_text_as_written(tmp_path, kind):
    written_values = ["1.1", "1.10", "1e5", "0", "-0.0", "true", "false", "100000000000000000000001", '"2024-03-12"']
    lines = [f'{{"text": "text {i}", "label": {value}}}' for i, value in enumerate(written_values * 3)]
    expected = [value.strip('"') for value in written_values * 3]
    assert labels(classification(written(tmp_path, lines, kind))) == expected
    task = responses(written(tmp_path, lines, kind), prompt="{text}", response="{label}")
    assert [text for (text,) in by_id(task, "response").values()] == expected


def test_dates_in_every_row_stay_as_written(tmp_path):
    lines = [json.dumps({"prompt": f"ask {i}", "response": f"2024-01-{i + 10}"}) for i in range(20)]
    found = by_id(responses(written(tmp_path, lines, "jsonl")), "response")
    assert [text for (text,) in found.values()] == [f"2024-01-{i + 10}" for i in range(20)]


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_a_nested_response_is_refused(tmp_path, kind):
    lines = ['{"prompt": "a", "response": {"age": null, "ok": true}}', '{"prompt": "b", "response": [1]}']
    assert place(kind, 1) + "column response holds an object" in refused(responses(written(tmp_path, lines, kind)))
    assert place(kind, 1) + "column response holds a list" in refused(responses(written(tmp_path, lines[1:], kind)))


def test_blank_lines_are_counted_and_do_not_shift_the_lines(tmp_path):
    lines = [GOOD[0], "", "  ", *GOOD[1:]]
    task = classification(written(tmp_path, lines, "jsonl"))
    assert len(by_id(task, "text")) == 30 and task.about()["counts"]["blank_lines_skipped"] == 2
    message = refused(classification(written(tmp_path, [*lines, "nonsense"], "jsonl")))
    assert place("jsonl", 33) in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "data.json: the file is empty"),
        ("[]", "data.json: no rows"),
        ("[1, 2]", "element 1: expected an object"),
        ('{\n"text": "a"\n}', "line 1: an object over several lines; expected an array"),
        ("[" + ", ".join(GOOD), "element 30: cannot be read as JSON (expected , or ] after it, found the end of"),
        ("[" + " ".join(GOOD) + "]", "element 1: cannot be read as JSON (expected , or ]"),
        ("[" + ", ".join(GOOD) + "] x", "cannot be read as JSON (after the array stands x)"),
        ('{"data": [{"text": "a"}]}', "no column text; it has data"),
    ],
)
def test_a_json_file_that_is_no_array_of_objects(tmp_path, text, expected):
    path = tmp_path / "data.json"
    path.write_text(text)
    assert expected in refused(classification(path))


def test_a_json_file_may_hold_lines_or_an_array_over_many_lines(tmp_path):
    path = tmp_path / "data.json"
    found = []
    for text in ("\n".join(GOOD), json.dumps(pairs(), indent=2), "\r\n \n" + json.dumps(pairs())):
        path.write_bytes(text.encode())
        found.append(by_id(classification(path), "text", "label"))
    assert found[0] == found[1] == found[2] and len(found[0]) == 30
