"""Folders of one file or several for each split, and which splits of a source are train, validation and test."""

import random

import pytest
from datasets import Dataset, DatasetDict
from reading_tools import classification, content, pairs, responses, write, written
from refusals import refusal

from rowsft.config.compose import compose
from rowsft.config.run_spec import run_spec
from rowsft.errors import UserError
from rowsft.store.identity import run_id


def rows(name, count):
    return [{"text": f"{name} {i}", "label": ("good", "bad")[i % 2]} for i in range(count)]


def texts(task):
    return {name: [row["text"] for row in part] for name, part in task.splits().items()}


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet", "json.gz"])
@pytest.mark.parametrize(("validation", "test"), [("validation", "test"), ("dev", "testing"), ("Valid", "TEST")])
def test_the_stem_of_a_file_names_its_split(tmp_path, kind, validation, test):
    for name, count in (("train", 9), (validation, 3), (test, 4)):
        write(tmp_path, rows(name, count), kind, name)
    (tmp_path / "README.md").write_text("train.csv")
    task = classification(tmp_path)
    assert texts(task) == {
        "train": [f"train {i}" for i in range(9)],
        "validation": [f"{validation} {i}" for i in range(3)],
        "test": [f"{test} {i}" for i in range(4)],
    }
    assert [row["id"] for row in task.splits()["validation"]] == [f"validation-{i}" for i in range(3)]
    assert set(task.about()["sha256"]) == {"path"}


def test_a_folder_reads_as_its_files_one_by_one(tmp_path):
    paths = {f"{name}_path": write(tmp_path, rows(name, 6), "jsonl", name) for name in ("train", "validation", "test")}
    assert classification(tmp_path).splits() == classification(paths).splits()


def test_shards_are_read_in_the_order_of_their_numbers_and_counted_through(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    everything = rows("train", 30)
    parts = [everything[:7], everything[7:8], everything[8:]]
    order = [2, 0, 1]
    random.Random(1).shuffle(order)
    for number in order:
        write(folder, parts[number], "parquet", f"train-{number:05}-of-00003-0123456789abcdef")
    write(folder, rows("test", 4), "parquet", "test-00000-of-00001")
    task = classification({"path": str(tmp_path), "validation": 0.1})
    splits = task.splits()
    found = sorted(splits["train"] + splits["validation"], key=lambda row: int(row["id"].removeprefix("train-")))
    assert [row["text"] for row in found] == [row["text"] for row in everything]
    assert [row["id"] for row in found] == [f"train-{i}" for i in range(30)]
    assert len(splits["validation"]) == 3 and len(splits["test"]) == 4


def test_ten_follows_nine(tmp_path):
    for number in range(11):
        write(tmp_path, rows(f"part {number}:", 2), "csv", f"train_{number}")
    write(tmp_path, rows("dev", 2), "csv", "dev")
    write(tmp_path, rows("test", 2), "csv", "test")
    assert texts(classification(tmp_path))["train"][-2:] == ["part 10: 0", "part 10: 1"]


def test_the_place_of_a_row_is_that_in_its_own_file(tmp_path):
    write(tmp_path, rows("a", 3), "csv", "train_1")
    write(tmp_path, [*rows("b", 3), {"text": "b", "label": "ugly"}], "csv", "train_2")
    write(tmp_path, [*rows("c", 1), {"text": "c", "label": "odd"}], "csv", "test")
    task = classification({"path": str(tmp_path), "validation": 0.2}, labels=["good", "bad"])
    assert "file train_2.csv, line 5: label ugly" in refusal(task.splits)
    task = classification({"path": str(tmp_path), "validation": 0.2}, labels=["good", "bad", "ugly"])
    assert "file test.csv, line 3: label odd" in refusal(task.splits)
    (tmp_path / "train_2.csv").write_text("text,label\nx,good\n,bad\n")
    assert "file train_2.csv, line 3: no value in column text" in refusal(classification(tmp_path).splits)


def test_blank_lines_of_all_parts_are_counted(tmp_path):
    for number in (1, 2):
        written(
            tmp_path,
            "text,label\na,0\n\nb,1\n\n" + "".join(f"{number}{i},1\n" for i in range(9)),
            f"train-{number}.csv",
        )
    assert classification(tmp_path).about()["counts"]["blank_lines_skipped"] == 4


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train.csv", "train.jsonl"], "train.csv, train.jsonl may all be meant by the split train; keep one"),
        (
            ["train.csv", "dev.csv", "validation.csv"],
            "dev.csv, validation.csv may all be meant by the split validation",
        ),
        (["train.csv", "train_1.csv"], "train.csv, train_1.csv may all be meant by the split train"),
        (["train_1.csv", "train-01.csv"], "may all be meant by the split train"),
        (["train-00000-of-00002.csv"], "the split train has 2 files by their names, and here are 1 (train-00000-of-"),
        (
            ["train.csv", "extra.csv"],
            "is 'extra' a split to use? It has extra, train; rename it, or say which they are",
        ),
        (["train.csv", "dev_matched.tsv"], "is 'validation_matched' a split to use?"),
        (["train.csv", "test2015.csv"], "is 'test2015' a split to use?"),
        (["dev.csv", "test.csv"], "no split called train; It has test, validation"),
        (
            ["README.md", ".train.csv", "dataset_infos.json"],
            "is a folder; expected a file with one of the endings .csv",
        ),
        (["a/train.csv", "b/train.csv"], "is a folder; expected a file with one of the endings .csv"),
        (["a/train.csv", "b/train.csv"], "; its folders a, b hold such files: give one of them"),
        (["train.csv", "data/train.csv"], "holds files of data (train.csv) and others in its folder data"),
    ],
)
def test_names_that_leave_a_choice_are_refused(tmp_path, names, expected):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content(rows(name, 4), name.rsplit(".", 1)[-1].replace("md", "csv")))
    assert expected in refusal(classification(tmp_path).splits)


def named(tmp_path, kind):
    """A source with the splits of MNLI; the labels of its test split are hidden."""
    parts = {name: rows(name, count) for name, count in (("train", 20), ("validation_matched", 4), ("validation_b", 5))}
    parts["test_matched"] = [{"text": "?", "label": ""}]
    if kind == "saved":
        DatasetDict({name: Dataset.from_list(part) for name, part in parts.items()}).save_to_disk(tmp_path / "saved")
        return str(tmp_path / "saved")
    for name, part in parts.items():
        write(tmp_path, part, "jsonl", name.replace("validation", "dev"))
    return str(tmp_path)


@pytest.mark.parametrize("kind", ["saved", "files"])
def test_splits_says_which_are_ours_and_the_others_are_not_read(tmp_path, kind):
    splits = {"train": "train", "validation": None, "test": "validation_matched"}
    data = {"path": named(tmp_path, kind), "splits": splits, "validation": 0.1, "test": None}
    task = classification(data)
    assert {name: len(part) for name, part in task.splits().items()} == {"train": 18, "validation": 2, "test": 4}
    assert [row["id"] for row in task.splits()["test"]] == [f"validation_matched-{i}" for i in range(4)]
    assert all(row["id"].startswith("train-") for row in task.splits()["validation"])
    other = {**data, "splits": {**splits, "test": "dev_b"}}
    assert texts(classification(other))["test"] == [f"validation_b {i}" for i in range(5)]
    both = {**data, "splits": {**splits, "validation": "validation_b"}}
    assert {name: len(part) for name, part in classification(both).splits().items()}["validation"] == 5


@pytest.mark.parametrize("kind", ["saved", "files"])
@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        ({"test": "dev_c"}, "task.data.splits.test=dev_c: no such split; task.data.path="),
        ({"train": "all"}, "task.data.splits.train=all: no such split"),
        ({"test": "train"}, "train and test would both be the split train; set one of them to null"),
    ],
)
def test_a_split_that_is_not_there_or_there_twice_is_refused(tmp_path, kind, splits, expected):
    data = {"path": named(tmp_path, kind), "splits": splits, "validation": 0.1}
    assert expected in refusal(classification(data).splits)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"splits": "train"}, "task.data.splits=train: expected a mapping such as {test: validation}"),
        ({"splits": {"dev": "dev"}}, "task.data.splits.dev: no such split; expected train, validation, test"),
        ({"splits": {"test": True}}, "task.data.splits.test=True: expected the name of a split"),
        ({"splits": {"test": ["a"]}}, "task.data.splits.test=['a']: expected the name of a split"),
        ({"splits": {"train": None}}, "task.data.splits.train=null: expected the name of the split to train on"),
        ({"hub": "org/name"}, "task.data.hub=org/name: expected a mapping with the keys id, config, revision"),
        ({"hub": {"path": "org/name"}}, "task.data.hub.path: no such key; expected id, config, revision"),
        ({"hub": {"config": "mrpc"}}, "task.data.hub.id: expected the id of a data set"),
        ({"hub": {"id": "org/name", "revision": []}}, "task.data.hub.revision=[]: expected text or null"),
    ],
)
def test_settings_of_splits_and_hub_are_refused_before_anything_is_read(data, expected):
    assert expected in refusal(lambda: classification({"path": "nowhere.csv", **data}))


def test_the_hub_is_asked_only_where_no_file_is_given(tmp_path):
    hub = {"id": str(tmp_path / "nothing"), "config": "mrpc", "revision": "main"}
    path = write(tmp_path, pairs(), "csv")
    for data in ({"path": path}, {"train_path": path}):
        assert len(classification({**data, "hub": hub}).splits()["train"]) == 18
    task = classification({"hub": hub})
    assert not task.data_at_hand()
    assert "task.data.hub.id=" in (said := refusal(task.splits)) and "cannot be loaded from the hub" in said
    about = classification({"path": path, "hub": hub}).about()
    assert (about["source"], about["revision"]) == (path, None)


def test_a_data_set_of_the_hub_gives_the_splits_that_are_named(tmp_path):
    """A folder of files stands in for the hub: its own loader reads it."""
    for name in ("train", "validation", "test"):
        write(tmp_path, rows(name, 8), "jsonl", name)
    splits = {"validation": None, "test": "validation"}
    task = responses({"hub": {"id": str(tmp_path)}, "splits": splits}, "{text}", "{label}")
    found = task.splits()
    assert [row["id"] for row in found["test"]] == [f"validation-{i}" for i in range(8)]
    assert task.about()["source"] == str(tmp_path)


def test_ids_of_runs_that_set_neither_are_what_they_were():
    config = run_spec(compose(["task=text_classification", "method=lora"])).config
    before = {**config, "task": {**config["task"], "data": dict(config["task"]["data"])}}
    assert (
        before["task"]["data"].pop("splits", "absent") is None and before["task"]["data"].pop("hub", "absent") is None
    )
    assert run_id(before) == run_id(config)
    for key in ("'task.data.splits={test: validation}'", "'task.data.hub={id: org/name}'"):
        key = key.strip("'")
        assert run_id(run_spec(compose(["task=text_classification", "method=lora", key])).config) != run_id(config)


def test_a_hub_that_is_not_read_is_in_no_id(tmp_path):
    given = ["task=text_classification", f"task.data.path={write(tmp_path, pairs(), 'csv')}"]
    assert run_spec(compose([*given, "task.data.hub={id: org/name}"])).run_id == run_spec(compose(given)).run_id


def test_a_folder_of_another_kind_as_one_of_the_splits(tmp_path):
    for name, names in (("a", ["train"]), ("b", ["train"]), ("c", ["train", "test"])):
        (tmp_path / name).mkdir()
        for split in names:
            write(tmp_path / name, rows(name, 9), "csv", split)
    task = classification({"train_path": str(tmp_path / "a"), "test_path": str(tmp_path / "b")})
    assert [row["id"] for row in task.splits()["test"]] == [f"test-{i}" for i in range(9)]
    with pytest.raises(UserError, match="holds the splits test, train; give it as task.data.path"):
        classification({"train_path": str(tmp_path / "c")}).splits()


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_marks_and_line_ends_of_the_files_are_no_part_of_the_text(tmp_path, end, mark):
    bodies = {
        "train.csv": ["text,label", *(f"w{i},{i % 2}" for i in range(9))],
        "valid.tsv": ["label\ttext", "0\tv0", "1\tv1"],
        "test.jsonl": ['{"text": "t0", "label": 0}', '{"text": "t1", "label": 1}'],
    }
    for name, lines in bodies.items():
        written(tmp_path, mark + end.join(lines) + end, name)
    expected = {"train": [f"w{i}" for i in range(9)], "validation": ["v0", "v1"], "test": ["t0", "t1"]}
    assert texts(classification(tmp_path)) == expected
    written(tmp_path, mark + end.join([*bodies["test.jsonl"], '{"text": "t2", "label"']) + end, "test.jsonl")
    assert "file test.jsonl, line 3: cannot be read as JSON" in refusal(classification(tmp_path).splits)


def test_texts_in_two_files_and_splits_of_one_class_are_said(tmp_path):
    for name, labels in (("train", "ab"), ("dev", "ab"), ("test", "b")):
        lines = (f'{{"text": "{name if i else "same"} {i}", "label": "{labels[i % len(labels)]}"}}' for i in range(6))
        written(tmp_path, "\n".join(lines), f"{name}.jsonl")
    about = classification(tmp_path).about()
    assert set(about["counts"]["rows_repeated_across_splits"].values()) == {1}
    assert "every test row is of the class b: nothing tells classes apart" in about["warnings"]
    assert "1 class in the training data (b)" in refusal(
        classification({"path": str(tmp_path), "splits": {"train": "test", "test": "dev", "validation": None}}).splits
    )
