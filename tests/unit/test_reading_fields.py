"""Columns of lists and objects: the same texts from every format that has them; what is not there is named."""

import json

import pyarrow as pa
import pytest
from datasets import Dataset
from pyarrow import parquet
from reading_tools import write
from refusals import refusal

from rowsft.tasks.local_data import Tables
from rowsft.tasks.reading import MissingColumn

KINDS = ("json", "jsonl", "jsonl.gz", "parquet", "saved")
ROWS = [
    {
        "id": i,
        "question": {"stem": f"stem {i}", "options": [{"text": f"a {i}", "label": "A"}, {"text": "b", "label": "B"}]},
        "choices": {"text": [f"one {i}", "two", "three"][: 2 + i % 2], "label": ["A", "B", "C"][: 2 + i % 2]},
        "endings": [f"x {i}", "y"],
        "numbers": [i, 7],
        "flags": [True, False],
        "dotted.name": f"dotted {i}",
    }
    for i in range(20)
]
COLUMNS = [
    *("question.stem", "question.options.text[]", "choices.text[]", "choices.label[]"),
    *("endings[]", "numbers[]", "flags[]", "dotted.name", "id"),
]


def tables(path, columns=COLUMNS, text="question.stem"):
    return Tables({"path": str(path), "validation": 0.2, "test": 0.2}).read(columns, [text])


def by_stem(splits, columns=COLUMNS):
    rows = [row for table in splits.values() for row in zip(*(table.columns[name] for name in columns), strict=True)]
    return sorted(rows, key=lambda row: int(row[0].split()[1]))


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_same_texts(tmp_path, kind):
    expected = [
        (
            row["question"]["stem"],
            [option["text"] for option in row["question"]["options"]],
            row["choices"]["text"],
            row["choices"]["label"],
            row["endings"],
            [str(number) for number in row["numbers"]],
            ["true", "false"],
            row["dotted.name"],
            str(row["id"]),
        )
        for row in ROWS
    ]
    assert by_stem(tables(write(tmp_path, ROWS, kind))) == expected


def test_lists_of_any_arrow_type_are_read(tmp_path):
    stems = [f"s {i}" for i in range(20)]
    pairs = [[f"a {i}", "b"] for i in range(20)]
    objects = [[{"text": text} for text in pair] for pair in pairs]
    for number, (kind, values) in enumerate(
        [
            (pa.list_(pa.string()), pairs),
            (pa.large_list(pa.large_string()), pairs),
            (pa.list_(pa.string(), 2), pairs),
            (pa.list_(pa.struct([("text", pa.string())])), objects),
            (pa.large_list(pa.struct([("text", pa.string())])), objects),
        ]
    ):
        path = tmp_path / f"{number}.parquet"
        table = pa.table({"stem": stems, "options": pa.array(values, kind)})
        # Several row groups, so that there are several batches.
        parquet.write_table(table, path, row_group_size=7)
        name = "options.text[]" if values is objects else "options[]"
        assert [row[1] for row in by_stem(tables(path, ["stem", name], "stem"), ["stem", name])] == pairs


def test_a_saved_data_set_that_was_filtered_gives_the_rows_that_are_left(tmp_path):
    dataset = Dataset.from_list(ROWS).filter(lambda row: row["id"] % 2 == 1)
    dataset.save_to_disk(tmp_path / "saved")
    names = ["question.stem", "choices.text[]"]
    rows = by_stem(tables(tmp_path / "saved", names), names)
    assert rows == [(row["question"]["stem"], row["choices"]["text"]) for row in ROWS[1::2]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("column", "said"),
    [
        ("choices.texts[]", r"no column choices.texts; it has choices\.(label, choices\.text|text, choices\.label)"),
        ("question.stems", "no column question.stems; it has question.*did you mean question.stem"),
        ("question.options.txt[]", "no column question.options.txt"),
        ("nothing[]", "no column nothing; it has id, question, choices, endings"),
        ("question.stem[]", "column question.stem holds .*; expected a list of texts"),
        ("endings", "column endings holds .*list.*; expected text"),
        ("choices.text", "column choices.text holds .*list.*; expected text"),
    ],
)
def test_what_is_not_there_or_of_another_kind_is_named(tmp_path, kind, column, said):
    import re

    path = write(tmp_path, ROWS, kind)
    message = refusal(tables, path, ["id", column], "id")
    assert re.search(said, message), message
    assert "data." in message


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["a", None], r"no value in column choices.text\[1\]"),
        (["a", " "], r"no value in column choices.text\[1\]"),
        (None, "no value in column choices.text; expected a list of texts"),
    ],
)
def test_a_gap_in_a_list_is_named_by_its_row_and_place(tmp_path, kind, options, said):
    rows = [{"id": str(i), "choices": {"text": ["a", "b"]}} for i in range(10)]
    rows[3]["choices"] = {"text": options}
    path = write(tmp_path, rows, kind)
    message = refusal(tables, path, ["id", "choices.text[]"], "id")
    place = {"json": "element 4", "jsonl": "line 4", "jsonl.gz": "line 4"}.get(kind, "row 4")
    assert f"{place}: {said}".replace("\\", "") in message


def test_a_csv_file_holds_no_lists(tmp_path):
    path = write(tmp_path, [{"id": "a", "options": "b"}], "csv")
    message = refusal(tables, path, ["id", "options[]"], "id")
    assert "column options should hold lists, and a cell of .csv holds one text; give one column each" in message


def test_a_missing_column_is_told_from_other_mistakes(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"id": str(i)}) + "\n" for i in range(10)))
    with pytest.raises(MissingColumn):
        tables(path, ["other"], "other")
