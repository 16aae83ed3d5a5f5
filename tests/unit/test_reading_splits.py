"""What is done with what was read: labels, splits, repetitions, counts, and values that no data could make right."""

import csv
import json
import random

import pytest
from reading_tools import FORMATS, by_id, classification, labels, pairs, responses, write
from refusals import refusal

from rowsft.tasks.reading import number
from rowsft.tasks.sentiment import Sentiment
from rowsft.tasks.social_iqa import SocialIqa
from rowsft.tasks.splits import fold

NUMBERS = {"regression": True, "primary_metric": "pearson"}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("column", ["text", "label"])
@pytest.mark.parametrize("empty", ["", "  ", None])
def test_an_empty_cell_is_refused_in_every_format(tmp_path, kind, column, empty):
    rows = pairs()
    rows[17][column] = empty
    message = refusal(classification(write(tmp_path, rows, kind)).splits)
    places = {"csv": "line 19", "tsv": "line 19", "jsonl": "line 18", "json": "element 18"}
    assert f"{places.get(kind.lower().removesuffix('.gz'), 'row 18')}: no value in column {column}" in message


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("column", ["prompt", "response"])
def test_an_empty_prompt_or_response_is_refused_in_every_format(tmp_path, kind, column):
    rows = [{"prompt": f"ask {i}", "response": f"say {i}"} for i in range(9)]
    rows[0][column] = ""
    assert f"no value in column {column}" in refusal(responses(write(tmp_path, rows, kind)).splits)


@pytest.mark.parametrize("kind", FORMATS)
def test_text_reaches_the_examples_as_written_and_labels_without_blanks_around_them(tmp_path, kind):
    rows = [
        {"text": f"  {row['text']}\u00a0", "label": f"{row['label']}{' ' * (i % 3)}"} for i, row in enumerate(pairs())
    ]
    task = classification(write(tmp_path, rows, kind))
    assert [text for (text,) in by_id(task, "text").values()] == [row["text"] for row in rows]
    assert task.classes == ["bad", "good"] and labels(task) == [row["label"] for row in pairs()]
    about = task.about()
    assert about["counts"]["labels_stripped"] == 20
    assert "blanks around 20 labels in column label are left out" in about["warnings"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    "value", ["nan", "NaN", "inf", "-Infinity", "1,5", "1_000", "0x10", "\u0661", "1e39", "good", "3 4"]
)
def test_a_target_that_is_no_finite_number_names_its_place(tmp_path, kind, value):
    rows = [{"text": f"text {i}", "label": str(i / 40)} for i in range(40)]
    rows[12]["label"] = rows[30]["label"] = value
    message = refusal(classification(write(tmp_path, rows, kind), **NUMBERS).splits)
    place = {"csv": "line 14", "jsonl": "line 13", "parquet": "row 13"}[kind]
    late = {"csv": "line 32", "jsonl": "line 31", "parquet": "row 31"}[kind]
    assert f"{place}: label " in message or f"{late}: label " in message
    assert "in column label is " in message and "correct it or drop the row" in message


def test_targets_are_the_numbers_that_float_reads(tmp_path):
    draw = random.Random(3)
    texts = [f"{draw.uniform(-9, 9):.{digits}f}" for digits in range(12)] + ["1e3", "-2.5E-3", "+4", "5.", ".5", " 7 "]
    assert [number(text) for text in texts] == [float(text) for text in texts]
    rows = [{"text": f"text {i}", "label": text} for i, text in enumerate(texts)]
    found = by_id(classification(write(tmp_path, rows, "jsonl"), **NUMBERS), "label")
    assert [label for (label,) in found.values()] == [float(text) for text in texts]


def test_numbers_as_classes_are_in_order_of_value_and_stay_apart(tmp_path):
    seen = ["10", "9", "1.10", "1.1", "02"]
    rows = [{"text": f"text {i}", "label": seen[i % 5]} for i in range(50)]
    assert classification(write(tmp_path, rows, "csv")).classes == ["1.1", "1.10", "02", "9", "10"]
    given = classification(write(tmp_path, rows, "csv"), labels=["10", "9", "1.10", "1.1", "02"])
    assert labels(given) == [row["label"] for row in rows]
    message = refusal(classification(write(tmp_path, rows, "csv"), labels=[10, 9, 1.1, 2]).splits)
    assert "label " in message and "is not among the classes 10, 9, 1.1, 2; give training data for it or" in message


def test_rows_that_train_and_test_share_are_counted_and_said(tmp_path):
    train = write(tmp_path, pairs(40), "csv", "train")
    rows = [
        {"text": "TEXT  number 3", "label": "good"},
        {"text": "text number 4 ", "label": "good"},
        {"text": "new", "label": "bad"},
        {"text": "New", "label": "bad"},
        {"text": "text number 3", "label": "good"},
    ]
    test = write(tmp_path, rows, "jsonl", "test")
    about = classification({"train_path": train, "test_path": test, "validation_path": train}).about()
    assert about["counts"]["rows_repeated_across_splits"] == {
        "validation in train": 40,
        "test in train": 3,
        "test in validation": 3,
    }
    assert about["counts"]["rows_repeated_within_split"] == {"train": 0, "validation": 0, "test": 2}
    said = "\n".join(about["warnings"])
    assert "3 of 5 test rows have a text that train holds too" in said and "2 of 5 in test" in said
    clean = classification({"train_path": train, "test_path": write(tmp_path, rows[2:3], "csv", "clean")}).about()
    assert clean["warnings"] == []


def test_prompts_are_compared_for_a_language_model_and_both_texts_of_a_pair(tmp_path):
    rows = [{"prompt": f"ask {i}", "response": f"say {i}"} for i in range(20)]
    train = write(tmp_path, rows, "jsonl", "train")
    test = write(tmp_path, [{"prompt": "ASK 3", "response": "other"}], "jsonl", "test")
    across = responses({"train_path": train, "test_path": test}).about()["counts"]["rows_repeated_across_splits"]
    assert across["test in train"] + across["test in validation"] == 1
    table = [{"text": "same", "pair": f"other {i}", "label": "ab"[i % 2]} for i in range(20)]
    train = write(tmp_path, table, "csv", "pairs")
    test = write(tmp_path, [{"text": "Same", "pair": "Other 3", "label": "a"}], "csv", "one")
    counts = classification({"train_path": train, "test_path": test}, {"pair": "pair"}).about()["counts"]
    across = counts["rows_repeated_across_splits"]
    assert across["test in train"] + across["test in validation"] == 1
    assert counts["rows_repeated_within_split"]["train"] == 0


def test_texts_that_fold_alike_are_cut_into_one_split_and_the_order_of_the_file_does_not_matter(tmp_path):
    rows = [{"text": f"{['a', 'A', ' a '][i % 3]} text {i // 3}", "label": "xy"[i % 2]} for i in range(90)]
    splits = classification(write(tmp_path, rows, "csv")).splits()
    folded = [{fold(row["text"]) for row in part} for part in splits.values()]
    assert sum(map(len, folded)) == 30
    random.Random(0).shuffle(rows)
    again = classification(write(tmp_path, rows, "csv")).splits()
    for name, part in splits.items():
        assert {row["text"] for row in part} == {row["text"] for row in again[name]}
    about = classification(write(tmp_path, rows, "csv")).about()
    assert about["counts"]["rows_repeated_within_split"]["test"] == 2 * len(folded[2])
    assert set(about["counts"]["rows_repeated_across_splits"].values()) == {0}


def test_a_split_that_repeats_make_larger_than_asked_is_told(tmp_path):
    rows = [{"text": "the same" if i % 2 else f"text {i}", "label": ("good", "bad")[i // 2 % 2]} for i in range(40)]
    task = classification({"path": write(tmp_path, rows, "csv"), "split_seed": 2})
    assert {name: len(part) for name, part in task.splits().items()} == {"train": 7, "validation": 8, "test": 25}
    expected = "test has 25 of 40 rows, where task.data.test=0.2 asks for 8: rows with the same text stay together"
    assert expected in task.about()["warnings"]
    assert classification(write(tmp_path, pairs(), "csv", "b")).about()["warnings"] == []


def test_labels_that_differ_in_case_alone_are_pointed_out(tmp_path):
    rows = [{"text": f"text {i}", "label": ["good", "Good", "bad"][i % 3]} for i in range(30)]
    task = classification(write(tmp_path, rows, "csv"))
    assert task.classes == ["Good", "bad", "good"]
    assert "labels that differ in case alone are classes of their own: Good, good" in task.about()["warnings"]


DATA = {"path": "nowhere.csv"}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"test": "x"}, "task.data.test=x: expected a share between 0 and 1"),
        ({"test": True}, "task.data.test=True: expected a share"),
        ({"test": -0.1}, "task.data.test=-0.1: expected a share"),
        ({"test": 1}, "task.data.test=1: expected a share"),
        ({"test": float("nan")}, "task.data.test=nan: expected a share"),
        ({"test": [0.1]}, "task.data.test=[0.1]: expected a share"),
        ({"validation": 0.5, "test": 0.5}, "nothing is left to train on"),
        ({"split_seed": "x"}, "task.data.split_seed=x: expected a whole number"),
        ({"split_seed": 1.5}, "task.data.split_seed=1.5: expected a whole number"),
        ({"split_seed": True}, "task.data.split_seed=True: expected a whole number"),
        ({"separator": ";"}, "task.data.separator=;: expected comma, semicolon, tab, pipe"),
        ({"separator": ["comma"]}, "task.data.separator=['comma']: expected comma"),
        ({"path": ["a.csv"]}, "task.data.path=['a.csv']: expected text or null"),
        ({"path": True}, "task.data.path=True: expected text or null"),
        ({"paths": "a.csv"}, "task.data.paths: no such key; expected path, train_path"),
    ],
)
def test_values_of_data_are_refused_before_anything_is_read(data, expected):
    assert expected in refusal(lambda: classification({**DATA, **data}))
    assert expected in refusal(lambda: responses({**DATA, **data}))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"limits": {"train": "x"}}, "task.limits.train=x: expected a whole number, at least 1"),
        ({"limits": {"train": True}}, "task.limits.train=True: expected a whole number"),
        ({"limits": {"train": -5}}, "task.limits.train=-5: expected a whole number"),
        ({"limits": {"train": 2.5}}, "task.limits.train=2.5: expected a whole number"),
        ({"limits": {"dev": 1}}, "task.limits.dev: no such split; expected train, validation, test"),
        ({"limits": 5}, "task.limits=5: expected a mapping"),
        ({"max_length": True}, "task.max_length=True: expected a whole number"),
        ({"max_length": "x"}, "task.max_length=x: expected a whole number"),
        ({"name": None}, "task.name=None: expected a name"),
        ({"columns": {"text": None}}, "task.columns.text=null: expected the name of a column"),
        ({"columns": {"text": ["a"]}}, "task.columns.text=['a']: expected the name of a column"),
        ({"columns": {"text": True}}, "task.columns.text=True: expected the name of a column"),
        ({"columns": {"txt": "a"}}, "task.columns.txt: no such key; expected text, pair, label"),
        ({"columns": {"text": "label"}}, "a column is named twice"),
        ({"labels": "good"}, "task.labels=good: expected a list of classes"),
        ({"labels": ["a", ["b"]]}, "['b'] is no label"),
        ({"labels": ["a"]}, "expected two classes or more"),
        ({"labels": ["a", "a "]}, "a class is named twice"),
        ({"regression": "x"}, "task.regression=x: expected true or false"),
        ({"extra_metrics": "f1"}, "task.extra_metrics=f1: expected a list of metrics"),
        ({"primary_metric": ["f1"]}, "metric ['f1']: no such metric"),
        ({"primary_metric": None}, "metric None: no such metric"),
    ],
)
def test_values_of_a_task_are_refused_before_anything_is_read(changes, expected):
    assert expected in refusal(lambda: classification(DATA, **changes))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"prompt": None}, "task.prompt=None: expected text with column names in braces"),
        ({"prompt": 5}, "task.prompt=5: expected text"),
        ({"prompt": "{}"}, "task.prompt='{}': expected column names in braces"),
        ({"prompt": "{a:>5}"}, "has a format"),
        ({"response": "{a!r}"}, "has a format"),
        ({"response": "{a"}, "task.response='{a'"),
        ({"response": "a}"}, "task.response='a}'"),
        ({"response": "plain"}, "task.response='plain': expected column names in braces"),
        ({"limits": {"test": 0}}, "task.limits.test=0"),
    ],
)
def test_templates_are_refused_before_anything_is_read(changes, expected):
    assert expected in refusal(lambda: responses(DATA, **changes))


def test_a_template_takes_names_whole_and_braces_as_text(tmp_path):
    rows = [{"the.name": f"a{i}", "more [x]": f"b{i}", "response": "{c}"} for i in range(9)]
    for kind in ("csv", "jsonl", "parquet"):
        task = responses(write(tmp_path, rows, kind), prompt="{{x}} {more [x]}{the.name}\\n")
        assert by_id(task, "prompt", "response")["row-3"] == ("{x} b3a3\n", "{c}")


def test_sizes_of_packaged_tasks_are_checked():
    assert "task.test=x: expected a whole number" in refusal(lambda: Sentiment("s", 64, validation=10, test="x"))
    assert "task.validation=0: expected" in refusal(lambda: SocialIqa("s", 64, validation=0, test=5))


def test_reading_agrees_with_the_csv_and_json_modules_on_odd_texts(tmp_path):
    odd = [
        "",
        "NA",
        "nan",
        "1e5",
        "007",
        "True",
        "2024-03-12",
        "  ",
        "\u00a0x",
        "x\ty",
        'say "hi"',
        "{}",
        "[1]",
        "a\\nb",
        "-",
    ]
    rows = [{"text": f"{text}|{i}", "label": "xy"[i % 2]} for i, text in enumerate(odd)]
    with open(write(tmp_path, rows, "csv"), newline="") as file:  # noqa: PTH123
        expected = [row["text"] for row in csv.DictReader(file)]
    assert [text for (text,) in by_id(classification(tmp_path / "data.csv"), "text").values()] == expected
    lines = (tmp_path / write(tmp_path, rows, "jsonl")).read_text().splitlines()
    expected = [json.loads(line)["text"] for line in lines]
    assert [text for (text,) in by_id(classification(tmp_path / "data.jsonl"), "text").values()] == expected


@pytest.mark.parametrize("limit", [1, 7])
def test_limits_keep_the_same_rows_in_every_format(tmp_path, limit):
    found = [
        classification(write(tmp_path, pairs(), kind), limits={"train": limit, "test": 2}).splits() for kind in FORMATS
    ]
    assert all(splits == found[0] for splits in found) and len(found[0]["train"]) == limit


@pytest.mark.parametrize("key", ["validation_path", "test_path"])
def test_a_file_of_a_split_beside_path_is_refused_and_not_ignored(key):
    data = {"path": "all.csv", key: "more.csv"}
    expected = f"task.data.path=all.csv, task.data.{key}=more.csv: give all rows in one file"
    assert expected in refusal(lambda: classification(data))


@pytest.mark.parametrize("key", ["config", "revision"])
def test_what_is_for_the_hub_is_refused_for_a_file(tmp_path, key):
    data = {"path": write(tmp_path, pairs(), "csv"), key: "main"}
    assert f"task.data.{key}=main: is for a data set of the hub" in refusal(classification(data).splits)
    data = {"train_path": data["path"], key: "main"}
    assert f"task.data.{key}=main: is for a data set of the hub" in refusal(classification(data).splits)


@pytest.mark.parametrize("key", ["path", "train_path"])
def test_a_separator_is_refused_for_a_saved_folder(tmp_path, key):
    data = {key: write(tmp_path, pairs(), "saved"), "separator": "tab"}
    assert "task.data.separator=tab: is for a csv file" in refusal(classification(data).splits)


def test_targets_that_are_all_equal_are_pointed_out(tmp_path):
    train = write(tmp_path, [{"text": f"text {i}", "label": str(i)} for i in range(20)], "csv", "train")
    test = write(tmp_path, [{"text": f"new {i}", "label": "2.50"} for i in range(5)], "csv", "test")
    said = classification({"train_path": train, "test_path": test}, **NUMBERS).about()["warnings"]
    assert said == ["every test row has the label 2.5: a correlation with it has no value"]


def test_labels_that_are_equal_as_numbers_are_pointed_out(tmp_path):
    rows = [{"text": f"text {i}", "label": ["1.1", "1.10", "2"][i % 3]} for i in range(30)]
    said = classification(write(tmp_path, rows, "csv")).about()["warnings"]
    assert said == ["labels that are the same number written differently are classes of their own: 1.1, 1.10"]
