"""parquet files, saved data sets and data sets as the hub's loader gives them: values written as text."""

import datetime
import decimal

import numpy as np
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from pyarrow import parquet
from reading_tools import FORMATS, classification, content, labels, pairs, write

from rowsft.errors import UserError
from rowsft.tasks.reading import read_hub

SECOND = datetime.datetime(2024, 3, 12, 10, 30, 5)
DECIMALS = ["1.10", "1.20", "7.00"]
DAYS = ["2024-03-01", "2024-03-12", "2024-03-30"]
COLUMNS = [
    (pa.array(["a", "b ", "\u00e9"]), ["a", "b", "\u00e9"]),
    (pa.array(["a", "b", "c"], pa.large_string()), ["a", "b", "c"]),
    (pa.array(["a", "b", "c"]).dictionary_encode(), ["a", "b", "c"]),
    (pa.array([1, -20, 3], pa.int8()), ["1", "-20", "3"]),
    (pa.array([1.0, 0.1, 1e22]), ["1.0", "0.1", "1e+22"]),
    (pa.array(np.array([1.0, 0.1, 2.5], np.float32)), ["1.0", "0.1", "2.5"]),
    (pa.array(list(map(decimal.Decimal, DECIMALS))), DECIMALS),
    (pa.array(list(map(datetime.date.fromisoformat, DAYS))), DAYS),
    (
        pa.array([SECOND.replace(microsecond=part) for part in (0, 120, 7)]),
        ["2024-03-12 10:30:05", "2024-03-12 10:30:05.00012", "2024-03-12 10:30:05.000007"],
    ),
    (
        pa.array([SECOND.replace(hour=hour) for hour in (0, 1, 2)], pa.timestamp("ns", "UTC")),
        [f"2024-03-12 0{hour}:30:05Z" for hour in (0, 1, 2)],
    ),
]


def saved(tmp_path, column, name="text"):
    other = pa.array([f"row {i}" for i in range(len(column))])
    path = tmp_path / "data.parquet"
    parquet.write_table(
        pa.table({"text": column, "label": other} if name == "text" else {"text": other, name: column}), path
    )
    return path


@pytest.mark.parametrize(("column", "expected"), COLUMNS, ids=lambda value: str(getattr(value, "type", "")))
def test_values_are_written_as_text(tmp_path, column, expected):
    column = pa.chunked_array([column] * 4)
    assert labels(classification(saved(tmp_path, column, "label"))) == expected * 4


def test_true_and_false_are_written_as_in_json(tmp_path):
    assert labels(classification(saved(tmp_path, pa.array([True, False] * 6), "label"))) == ["true", "false"] * 6


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array(["a"] * 20_000 + [None]), "row 20001: no value in column text"),
        (pa.array(["a", ""]), "row 2: no value in column text"),
        (pa.array([1.5, float("nan")]), "row 2: no value in column text"),
        (pa.array([1.5, None]), "row 2: no value in column text"),
        (pa.array([None, 1]), "row 1: no value in column text"),
        (pa.array([None, None]), "row 1: no value in column text"),
        (pa.array([["a"], ["b"]]), "row 1: column text holds values of the type list<"),
        (pa.array([{"a": 1}]), "row 1: column text holds values of the type struct<"),
        (pa.array([b"a"]), "row 1: column text holds values of the type binary"),
        (pa.array(["a", "b\0"]), "row 2: column text holds the character NUL"),
        (pa.array([b"a", b"\xff"]).view(pa.string()), "row 2: column text holds bytes that are not UTF-8"),
    ],
)
def test_a_cell_that_is_no_text_is_named_by_its_row(tmp_path, column, expected):
    with pytest.raises(UserError) as error:
        classification(saved(tmp_path, column)).splits()
    assert f"data.parquet, {expected}" in str(error.value) and "\n" not in str(error.value)


def test_columns_and_damage_of_parquet_are_named(tmp_path):
    path = saved(tmp_path, pa.array(["a"]))
    with pytest.raises(UserError, match="data.parquet: no column txt; it has text, label; did you mean text?"):
        classification(path, {"text": "txt"}).splits()
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match="data.parquet: cannot be read as parquet"):
        classification(path).splits()
    path.write_bytes(b"")
    with pytest.raises(UserError, match="data.parquet: cannot be read as parquet"):
        classification(path).splits()
    parquet.write_table(pa.table({"text": pa.array([], pa.string()), "label": pa.array([], pa.string())}), path)
    with pytest.raises(UserError, match="data.parquet: no rows"):
        classification(path).splits()


def test_a_saved_data_set_of_splits_gives_those_splits(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    parts = {
        name: Dataset.from_dict(
            {"text": [f"{name} {i}" for i in range(n)], "label": [i % 2 for i in range(n)]}, features
        )
        for name, n in (("train", 8), ("test", 4), ("extra", 3))
    }
    DatasetDict(parts).save_to_disk(tmp_path / "saved")
    task = classification(tmp_path / "saved")
    sizes = {name: len(rows) for name, rows in task.splits().items()}
    assert sizes == {"train": 6, "validation": 2, "test": 4} and task.classes == ["0", "1"]
    assert task.splits()["test"][3] == {"id": "test-3", "text": "test 3", "label": 1}
    with pytest.raises(UserError, match="saved: holds the splits train, test, extra; give it as task.data.path"):
        classification({"train_path": str(tmp_path / "saved")}).splits()


def test_saved_folders_can_be_the_splits_and_have_a_fingerprint(tmp_path):
    paths = {name: write(tmp_path, pairs(count), "saved", name) for name, count in (("a", 20), ("b", 6))}
    task = classification({"train_path": paths["a"], "test_path": paths["b"]})
    assert [row["id"] for row in task.splits()["test"]] == [f"test-{i}" for i in range(6)]
    hashes = task.about()["sha256"]
    assert set(hashes) == {"train_path", "test_path"} and len(set(hashes.values())) == 2


def test_another_folder_is_refused(tmp_path):
    (tmp_path / "inner").mkdir()
    with pytest.raises(UserError, match="inner: is a folder; expected a file"):
        classification(tmp_path / "inner").splits()
    (tmp_path / "inner" / "state.json").write_text("{")
    with pytest.raises(UserError, match="inner: the saved data set cannot be read"):
        classification(tmp_path / "inner").splits()


def same(*names):
    """A choice of splits under the names that they have."""
    return lambda present: {name: name for name in names}


def test_what_the_hubs_loader_gives_has_the_same_checks(tmp_path):
    for name, rows in (("train", pairs(9)), ("test", [*pairs(3), {"text": "a", "label": None}])):
        (tmp_path / f"{name}.jsonl").write_bytes(content(rows, "jsonl"))
    tables = read_hub(str(tmp_path), "task.data.path=org/name", None, None, ["text", "label"], same("train"))
    assert (
        tables["train"].columns["text"] == [row["text"] for row in pairs(9)] and tables["train"].ids()[8] == "train-8"
    )
    with pytest.raises(UserError, match="org/name, split test, row 4: no value in column label"):
        read_hub(str(tmp_path), "task.data.path=org/name", None, None, ["text", "label"], same("train", "test"))
    with pytest.raises(UserError, match="org/name, split train: no column txt; it has text, label"):
        read_hub(str(tmp_path), "task.data.path=org/name", None, None, ["txt"], same("train"))


def test_the_same_rows_have_the_same_ids_and_splits_in_every_format(tmp_path):
    found = [classification(write(tmp_path, pairs(), kind)).splits() for kind in FORMATS]
    assert all(splits == found[0] for splits in found)


def test_decimals_are_written_without_an_exponent(tmp_path):
    written = ["0.0000000000", "0.0000000010", "12.5000000000"]
    found = classification(saved(tmp_path, pa.array(list(map(decimal.Decimal, written))), "label"), labels=written)
    assert labels(found) == written


def test_class_numbers_that_mean_other_classes_in_another_split_are_refused(tmp_path):
    rows = Dataset.from_dict({"text": [f"text {i}" for i in range(20)], "label": [i % 2 for i in range(20)]})
    both = rows.cast_column("label", ClassLabel(names=["bad", "good"]))
    turned = rows.cast_column("label", ClassLabel(names=["good", "bad"]))
    DatasetDict(train=both, test=turned).save_to_disk(tmp_path / "turned")
    expected = r"split test: the numbers of column label stand for good, bad, in .*split train for bad, good; cast"
    with pytest.raises(UserError, match=expected):
        classification(tmp_path / "turned").splits()
    for name, part in (("one", both), ("other", turned)):
        part.save_to_disk(tmp_path / name)
    files = {"train_path": str(tmp_path / "one"), "test_path": str(tmp_path / "other")}
    with pytest.raises(UserError, match=r"test_path=.*other: the numbers of column label stand for good, bad"):
        classification(files).splits()
    assert classification({**files, "test_path": files["train_path"]}).splits()


def test_a_name_with_blanks_around_it_is_shown_so(tmp_path):
    path = tmp_path / "data.parquet"
    parquet.write_table(pa.table({"text": ["a", "b"], "label ": ["x", "y"]}), path)
    with pytest.raises(UserError, match="no column label; it has text, 'label '; did you mean 'label '?"):
        classification(path).splits()
