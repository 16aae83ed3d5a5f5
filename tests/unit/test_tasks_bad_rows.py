"""Of several bad rows the first one of the file is named, whatever split each of them is in."""

import json
import random
import re

import pytest

from rowsft.errors import UserError
from rowsft.tasks.generated_answer import GeneratedAnswer
from rowsft.tasks.multiple_choice import MultipleChoice
from rowsft.tasks.text_classification import TextClassification

ROWS = 40
ANSWERS = ["answer1", "answer2"]
INSTRUCTIONS = {"instruction": "{question} Answer1: {option1} Answer2: {option2}", "answers": ANSWERS}


def classes(data):
    return TextClassification("t", 32, data, {"text": "text", "label": "label"}, "accuracy", labels=["a", "b"])


def numbers(data):
    return TextClassification("t", 32, data, {"text": "text", "label": "label"}, "pearson", regression=True)


def choice(data, **settings):
    return MultipleChoice("t", 32, data, "{text}", "options", "label", **settings)


def instructions(data, **settings):
    options = ["{option1}", "{option2}"]
    return MultipleChoice("t", 32, data, "{question}", options, "label", llm_adapters=INSTRUCTIONS, **settings)


def asked(row, answer):
    return {"instruction": f"Q {row} Answer1: a Answer2: b", "output": f"the correct answer is {answer}"}


# What makes the task, a good row, and ways of being bad, each of the row's number.
KINDS = {
    "classes": (classes, lambda i: {"text": f"t {i}", "label": "ab"[i % 2]}, [{"label": "c"}, {"label": "A"}]),
    "numbers": (numbers, lambda i: {"text": f"t {i}", "label": i}, [{"label": "nan"}, {"label": "1,5"}]),
    "choice": (
        lambda data: choice(data, max_new_tokens=4),
        lambda i: {"text": f"t {i}", "options": ["a", f"b{i}"], "label": i % 2},
        [{"options": ["a"]}, {"label": 2}, {"options": ["b", " B"]}],
    ),
    "instructions": (
        instructions,
        lambda i: {**asked(i, ANSWERS[i % 2]), "answer": ANSWERS[i % 2]},
        [{"output": "answer2"}, {"instruction": "Q?"}, {**asked(0, "answer3"), "answer": "answer3"}],
    ),
    "whole instructions": (
        lambda data: instructions(data, form="instruction"),
        lambda i: {**asked(i, ANSWERS[i % 2]), "answer": ANSWERS[i % 2]},
        [{"output": "answer2"}, {"instruction": "Q?"}, {**asked(0, "answer3"), "answer": "answer3"}],
    ),
    "numbers written": (
        lambda data: GeneratedAnswer("t", 32, data, "{text}", "{response}", 8),
        lambda i: {"text": f"t {i}", "response": f"#### {i}"},
        [{"response": "none"}, {"response": "5 #### none"}],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_bad_row_of_a_file_is_named(kind, tmp_path):
    make, row, faults = KINDS[kind]
    draw, path = random.Random(kind), tmp_path / "rows.jsonl"
    data = {"path": str(path), "validation": 0.3, "test": 0.3}
    for _ in range(12):
        rows = [row(i) for i in range(ROWS)]
        bad = draw.sample(range(ROWS), 3)
        for i in bad:
            rows[i] = {**rows[i], **draw.choice(faults)}
        path.write_text("".join(json.dumps(one) + "\n" for one in rows))
        with pytest.raises(UserError) as caught:
            make(data).splits()
        assert re.search(r"rows\.jsonl, line (\d+): ", str(caught.value))[1] == str(min(bad) + 1), str(caught.value)


def test_of_several_files_the_first_in_the_order_of_splits_is_named(tmp_path):
    make, row, (fault, _) = KINDS["classes"]
    for name, bad in (("train", None), ("validation", 9), ("test", 0)):
        rows = [{**row(i), "text": f"{name} {i}", **(fault if i == bad else {})} for i in range(10)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    with pytest.raises(UserError, match=r"validation\.jsonl, line 10: label c is not among"):
        make({"path": str(tmp_path)}).splits()
