"""The tasks of GLUE on files as the hub has them and as GLUE's own archive has them: the same examples and classes."""

import csv
from collections import Counter

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from refusals import refusal

from rowsft.config.compose import compose
from rowsft.config.instantiate import instantiated
from rowsft.tasks import Task

# Of each task: columns of texts and class names on the hub; the archive's column names (None where it has no header);
# whether the archive writes class names.
HUB = {
    "cola": (["sentence"], ["unacceptable", "acceptable"], None, False),
    "sst2": (["sentence"], ["negative", "positive"], ["sentence", "label"], False),
    "mrpc": (
        ["sentence1", "sentence2"],
        ["not_equivalent", "equivalent"],
        ["#1 String", "#2 String", "Quality"],
        False,
    ),
    "qqp": (
        ["question1", "question2"],
        ["not_duplicate", "duplicate"],
        ["question1", "question2", "is_duplicate"],
        False,
    ),
    "mnli": (
        ["premise", "hypothesis"],
        ["entailment", "neutral", "contradiction"],
        ["sentence1", "sentence2", "gold_label"],
        True,
    ),
    "qnli": (["question", "sentence"], ["entailment", "not_entailment"], ["question", "sentence", "label"], True),
    "rte": (["sentence1", "sentence2"], ["entailment", "not_entailment"], ["sentence1", "sentence2", "label"], True),
}
OVERRIDES = {
    "mrpc": ['task.columns={text: "#1 String", pair: "#2 String", label: Quality}'],
    "qqp": ["task.columns.label=is_duplicate"],
    "mnli": ["task.columns={text: sentence1, pair: sentence2, label: gold_label}"],
}
TASKS = [*HUB, "mnli_mismatched"]
METRICS = {
    "cola": ("matthews", ["matthews", "accuracy"]),
    "mrpc": ("f1", ["f1", "accuracy"]),
    "qqp": ("f1", ["f1", "accuracy"]),
}


def examples(name, split, count):
    """(texts, class number) of a split; those of test are hidden, as GLUE has them."""
    columns, classes, *_ = HUB[name]
    hidden = split.startswith("test")
    return [
        ([f'{split} "{column}" {i}' for column in columns], -1 if hidden else i % len(classes)) for i in range(count)
    ]


def splits_of(name):
    sizes = {"train": 60, "validation": 9, "test": 4}
    if name != "mnli":
        return sizes
    return {"train": 60, "validation_matched": 9, "validation_mismatched": 7, "test_matched": 4, "test_mismatched": 4}


def as_on_the_hub(folder, name):
    columns, classes, *_ = HUB[name]
    features = Features({column: Value("string") for column in columns} | {"label": ClassLabel(names=classes)})
    folder.mkdir()
    for split, count in splits_of(name).items():
        rows = [
            dict(zip(columns, texts, strict=True)) | {"label": label} for texts, label in examples(name, split, count)
        ]
        Dataset.from_list(rows, features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


def as_in_the_archive(folder, name):
    _, classes, header, words = HUB[name]
    folder.mkdir()
    for split, count in splits_of(name).items():
        with (folder / f"{split.replace('validation', 'dev')}.tsv").open("w", newline="") as file:
            writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None, lineterminator="\n")
            shown = header if not split.startswith("test") else header[:-1]
            writer.writerow(["index", *shown])
            for i, (texts, label) in enumerate(examples(name, split, count)):
                writer.writerow([i, *texts, *([classes[label] if words else label] if shown == header else [])])
    return str(folder)


def task(name, *overrides):
    return instantiated("task", compose([f"task=glue/{name}", *overrides]).task, Task)


@pytest.mark.parametrize("name", TASKS)
def test_a_copy_of_the_hubs_files_is_one_override(tmp_path, name):
    source = name.removesuffix("_mismatched")
    found = task(name, f"task.data.path={as_on_the_hub(tmp_path / 'hub', source)}", "task.data.validation=0.1")
    splits = found.splits()
    tested = {"mnli": "validation_matched", "mnli_mismatched": "validation_mismatched"}.get(name, "validation")
    given = examples(source, tested, splits_of(source)[tested])
    assert [
        (list(map(row.get, ("text", "pair")[: len(texts)])), row["label"])
        for row, (texts, _) in zip(splits["test"], given, strict=True)
    ] == given
    assert {part: len(rows) for part, rows in splits.items()} == {"train": 54, "validation": 6, "test": len(given)}
    assert all(row["id"].startswith("train-") for row in splits["validation"])
    primary, used = METRICS.get(source, ("accuracy", ["accuracy"]))
    assert (found.primary_metric, found.metric_names) == (primary, used)
    assert found.head_settings()["num_labels"] == len(HUB[source][1])


@pytest.mark.parametrize("name", [name for name in TASKS if name != "cola"])
def test_glues_own_files_give_the_same_examples_as_the_hubs(tmp_path, name):
    source = name.removesuffix("_mismatched")
    paths = as_on_the_hub(tmp_path / "hub", source), as_in_the_archive(tmp_path / "zip", source)
    hub, archive = (
        task(name, f"task.data.path={path}", *overrides)
        for path, overrides in zip(paths, ([], OVERRIDES.get(source, [])), strict=True)
    )
    assert hub.splits() == archive.splits()
    assert hub.classes == archive.classes


@pytest.mark.parametrize("name", TASKS)
def test_the_number_of_classes_is_known_without_data(name):
    found = task(name)
    assert not found.data_at_hand()
    assert found.head_settings()["num_labels"] == len(HUB[name.removesuffix("_mismatched")][1])


def test_validation_of_mnli_is_that_of_mnli_mismatched(tmp_path):
    path = as_on_the_hub(tmp_path / "hub", "mnli")
    matched, mismatched = (task(name, f"task.data.path={path}").splits() for name in ("mnli", "mnli_mismatched"))
    assert matched["train"] == mismatched["train"] and matched["validation"] == mismatched["validation"]
    assert matched["test"] != mismatched["test"]


def test_pairs_of_qqp_with_an_empty_question_are_dropped_counted_and_said(tmp_path):
    path = as_in_the_archive(tmp_path / "zip", "qqp")
    train = tmp_path / "zip" / "train.tsv"
    lines = train.read_text().splitlines()
    lines[3] = "\t".join(["2", "", *lines[3].split("\t")[2:]])
    train.write_text("\n".join(lines) + "\n")
    given = ["qqp", f"task.data.path={path}", *OVERRIDES["qqp"]]
    found = task(*given)
    ids = {row["id"] for part in ("train", "validation") for row in found.splits()[part]}
    assert ids == {f"train-{i}" for i in range(60)} - {"train-2"}
    about = found.about()
    assert about["counts"]["rows_with_empty_cells_dropped"] == 1
    assert any(
        "file train.tsv: 1 rows without a value in a column that is used are left out" in w for w in about["warnings"]
    )
    assert "train.tsv, line 4: no value in column question1" in refusal(task(*given, "task.data.empty=refuse").splits)
    assert (
        "rows_with_empty_cells_dropped"
        not in task(
            *given[:1], f"task.data.path={as_on_the_hub(tmp_path / 'h', 'qqp')}", "task.data.empty=refuse"
        ).about()["counts"]
    )


def test_class_numbers_become_names_only_where_the_names_are_listed(tmp_path):
    path = as_on_the_hub(tmp_path / "hub", "rte")
    numbers = task("rte", f"task.data.path={path}", 'task.labels=["0", "1"]').splits()
    assert numbers == task("rte", f"task.data.path={path}").splits()
    turned = task("rte", f"task.data.path={path}", "task.labels=[not_entailment, entailment]").splits()
    assert [1 - row["label"] for row in turned["test"]] == [row["label"] for row in numbers["test"]]
    assert "label 0 is not among the classes yes, no" in refusal(
        task("rte", f"task.data.path={path}", "task.labels=['yes', 'no']").splits
    )


def test_hidden_labels_are_refused_and_not_taken_for_a_class(tmp_path):
    path = as_on_the_hub(tmp_path / "hub", "rte")
    said = refusal(task("rte", f"task.data.path={path}", "task.data.splits={test: test}").splits)
    assert "test-00000-of-00001.parquet, row 1: label -1 is not among the classes entailment, not_entailment" in said


def test_parts_of_one_split_have_the_same_classes(tmp_path):
    for number, names in enumerate((["no", "yes"], ["yes", "no"])):
        features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
        rows = [{"text": f"{number} {i}", "label": i % 2} for i in range(9)]
        Dataset.from_list(rows, features).to_parquet(tmp_path / f"train-{number:05}-of-00002.parquet")
    config = compose(["task=text_classification", f"task.data.path={tmp_path}"])
    said = refusal(instantiated("task", config.task, Task).splits)
    assert "the numbers of column label stand for yes, no" in said and "for no, yes" in said


@pytest.mark.parametrize("name", ["mrpc", "cola"])
def test_the_metric_is_the_fields(tmp_path, name):
    """Against scikit-learn's definitions, spelled out: F1 of class 1, and Matthews' correlation."""
    from rowsft.tasks import metrics

    labels = np.array([0, 1, 1, 0, 1, 1, 0, 1, 0, 1])
    predicted = np.array([0, 1, 0, 1, 1, 1, 0, 0, 0, 1])
    counts = Counter(zip(predicted.tolist(), labels.tolist(), strict=True))
    tp, fp, fn, tn = counts[1, 1], counts[1, 0], counts[0, 1], counts[0, 0]
    expected = {
        "mrpc": 2 * tp / (2 * tp + fp + fn),
        "cola": (tp * tn - fp * fn) / ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5,
    }[name]
    primary = task(name).primary_metric
    assert metrics.compute([primary], predicted, labels)[primary] == pytest.approx(expected)
