"""Multiple choice on the user's own columns: every way of writing options and labels, and every mistake named."""

import re

import pytest
from reading_tools import by_id, questions, write
from refusals import refusal
from task_tools import bpe
from tiny import tiny_llama

LABELS = [i % 3 for i in range(20)]
TEXTS = [[f"cat {i}", "dog", f"sun {i}"] for i in range(20)]


def flat(labels):
    return [
        {"question": f"what is {i}?", "a": a, "b": b, "c": c, "label": label}
        for i, ((a, b, c), label) in enumerate(zip(TEXTS, labels, strict=True))
    ]


def nested(labels):
    return [
        {"question": f"what is {i}?", "choices": {"text": texts, "label": ["A", "B", "C"]}, "label": label}
        for i, (texts, label) in enumerate(zip(TEXTS, labels, strict=True))
    ]


EXPECTED = {
    f"row-{i}": (f"what is {i}?", texts, label) for i, (texts, label) in enumerate(zip(TEXTS, LABELS, strict=True))
}
WAYS = {
    "from_0": ("from_0", [str(label) for label in LABELS]),
    "from_1": ("from_1", [str(label + 1) for label in LABELS]),
    "letters": ("letters", ["ABC"[label] for label in LABELS]),
    "texts": ("texts", [texts[label] for texts, label in zip(TEXTS, LABELS, strict=True)]),
    "list": (["first", "second", "third"], [("first", "second", "third")[label] for label in LABELS]),
    "list of numbers": ([7, 8, 9], [str(label + 7) for label in LABELS]),
    "blanks": ("letters", [f" {'ABC'[label]}  " for label in LABELS]),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_options_of_columns_and_every_way_of_labels(tmp_path, kind, way):
    labels, written = WAYS[way]
    path = write(tmp_path, flat(written), kind)
    task = questions(path, options=["{a}", "{b}", "{c}"], labels=labels)
    assert by_id(task, "prompt", "options", "label") == EXPECTED


@pytest.mark.parametrize("kind", ["json", "parquet", "saved"])
@pytest.mark.parametrize("labels", ["letters", "choices.label", "texts", ["A", "B", "C", "D"]])
def test_options_and_labels_of_lists(tmp_path, kind, labels):
    written = [texts[label] if labels == "texts" else "ABC"[label] for texts, label in zip(TEXTS, LABELS, strict=True)]
    task = questions(write(tmp_path, nested(written), kind), options="choices.text", labels=labels)
    assert by_id(task, "prompt", "options", "label") == EXPECTED


def test_booleans_and_numbers_are_labels_as_they_are_written(tmp_path):
    rows = [{"question": f"is {i}?", "label": i % 2 == 1} for i in range(20)]
    task = questions(write(tmp_path, rows, "jsonl"), options=["no", "yes"], labels=[False, True])
    assert {row["label"] for row in by_row(task)} == {0, 1}
    assert all(row["label"] == int(row["id"][4:]) % 2 and row["options"] == ["no", "yes"] for row in by_row(task))


def by_row(task):
    return [row for part in task.splits().values() for row in part]


def test_questions_may_differ_in_the_number_of_options(tmp_path):
    rows = [
        {"question": f"q {i}", "options": ["a", "b", "c", "d", "e"][: 2 + i % 4], "label": str(i % 2)}
        for i in range(20)
    ]
    task = questions(write(tmp_path, rows, "jsonl"))
    assert sorted({len(row["options"]) for row in by_row(task)}) == [2, 3, 4, 5]
    examples = task.splits()["test"]
    result = task.evaluate(tiny_llama(), examples, bpe(), batch_size=4)
    assert [len(row["scores"]) for row in result.predictions] == [len(row["options"]) for row in examples]


def test_the_primary_metric_and_the_domain_prompt_are_settings(tmp_path):
    path = write(tmp_path, flat([str(label) for label in LABELS]), "csv")
    task = questions(path, options=["{a}", "{b}", "{c}"], primary_metric="accuracy_pmi", pmi="A:\\n")
    assert (task.primary_metric, task.higher_is_better, task.domain_prompt) == ("accuracy_pmi", True, "A:\n")
    result = task.evaluate(tiny_llama(), task.splits()["test"], bpe(), batch_size=4)
    assert "accuracy_pmi" in result.metrics
    assert all(row["prediction"] == row["prediction_pmi"] for row in result.predictions)
    lower = questions(path, options=["{a}", "{b}"], primary_metric="loss")
    assert lower.higher_is_better is False


def test_equal_options_are_counted_and_warned_of(tmp_path):
    rows = flat([str(label) for label in LABELS])
    rows[3]["b"] = rows[3]["a"].upper()
    task = questions(write(tmp_path, rows, "csv"), options=["{a}", "{b}", "{c}"])
    about = task.about()
    assert sum(about["counts"]["rows_with_equal_options"].values()) == 1
    assert any("two options that are equal" in line for line in about["warnings"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"options": []}, r"task.options=\[\]: expected two templates or more"),
        ({"options": ["{a}"]}, "task.options=.*expected two templates or more"),
        ({"options": ["{a}", 3]}, r"task.options\[1\]=3: expected text"),
        ({"options": ["{a}", ""]}, r"task.options\[1\]='': expected"),
        ({"options": ["{a", "b"]}, r"task.options\[0\]='{a'"),
        ({"options": {"a": 1}}, "task.options={'a': 1}: expected two templates"),
        ({"labels": ["x", "y"]}, r"task.labels=\[x, y\]: 2 labels for 3 options"),
        ({"labels": ["x", "y", "x"]}, r"task.labels=\[x, y, x\]: a label stands twice"),
        ({"labels": ["x", "y", 1.5]}, "task.labels: 1.5 is no label"),
        ({"labels": 3}, "task.labels=3: expected from_0, from_1, letters, texts, a list"),
        ({"label": ""}, "task.label=: expected the name of the column"),
        ({"primary_metric": "accuracy"}, "task.primary_metric=accuracy: no such metric; expected accuracy_sum"),
        ({"primary_metric": "accuracy_pmi"}, "needs a domain prompt; set task.pmi"),
        ({"prompt": "Q: {question}\\nA: "}, "task.prompt=.*ends with white space, and task.delimiter=' ' adds more"),
        ({"label": "lable"}, "data.csv: no column lable; it has question, a, b, c, label; did you mean label"),
        ({"options": ["{a}", "{d}", "{c}"]}, "data.csv: no column d"),
        ({"options": "a"}, "column a should hold lists, and a cell of .csv holds one text"),
        ({"labels": "from_1"}, r"line \d+: column label is [012]; expected 1, 2, 3 .task.labels=from_1."),
        ({"labels": "letters"}, r"line \d+: column label is [012]; expected A, B, C .task.labels=letters."),
        ({"labels": "texts"}, r"line \d+: column label is [012]; expected cat \d+, dog, sun \d+ .task.labels=texts."),
        ({"labels": ["3", "4", "5"]}, r"line \d+: column label is [012]; expected 3, 4, 5 .task.labels."),
    ],
)
def test_every_mistake_is_one_line(tmp_path, changes, said):
    path = write(tmp_path, flat([str(label) for label in LABELS]), "csv")
    settings = {"options": ["{a}", "{b}", "{c}"], **changes}
    message = refusal(lambda: questions(path, **settings).splits())
    assert re.search(said, message), message


@pytest.mark.parametrize(
    ("change", "labels", "said"),
    [
        ({"label": "-1"}, "from_0", "line 5: column label is -1; expected 0, 1, 2 .*the labels of a split are hidden"),
        ({"label": "3"}, "from_0", "line 5: column label is 3; expected 0, 1, 2"),
        ({"label": "D"}, ["A", "B", "C", "D"], "line 5: column label is D; expected A, B, C"),
        ({"label": ""}, "from_0", "line 5: no value in column label"),
        ({"options": ["one"]}, "from_0", "line 5: column options holds 1 options; expected two or more"),
        ({"options": ["one", ""]}, "from_0", r"line 5: no value in column options\[1\]"),
        ({"options": ["one", "one"], "label": "one"}, "texts", "line 5: column label is one, which stands for several"),
        ({"names": ["x"]}, "names", "line 5: 1 labels in column names for 3 options"),
    ],
)
def test_a_row_that_is_wrong_is_named(tmp_path, change, labels, said):
    rows = [
        {"question": f"q {i}", "options": ["x 1", "y 2", "z 3"], "names": ["x", "y", "z"], "label": "0"}
        for i in range(20)
    ]
    right = {"texts": "x 1", "names": "x", "from_0": "0"}.get(str(labels), "A")
    rows = [{**row, "label": right} for row in rows]
    rows[4] |= change
    message = refusal(lambda: questions(write(tmp_path, rows, "jsonl"), labels=labels).splits())
    assert re.search(said, message), message
    assert "data.jsonl" in message


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_a_question_with_an_empty_option_is_left_out_where_that_is_asked_for(tmp_path, kind):
    rows = [{"question": f"q {i}", "options": ["a", "  " if i == 3 else "b"], "label": str(i % 2)} for i in range(20)]
    path = write(tmp_path, rows, kind)
    built = questions({"path": str(path), "empty": "drop"})
    assert {row["id"] for row in by_row(built)} == {f"row-{i}" for i in range(20) if i != 3}
    assert built.about()["counts"]["rows_with_empty_cells_dropped"] == 1
    assert "no value in column options[1]" in refusal(lambda: questions(path).splits())


def test_a_right_option_that_never_moves_is_warned_of(tmp_path):
    rows = [{"question": f"q {i}", "options": ["a", "b"], "label": "1"} for i in range(20)]
    warnings = questions(write(tmp_path, rows, "jsonl")).about()["warnings"]
    assert "every test row's right option is the same, number 2: its place alone tells it" in warnings
