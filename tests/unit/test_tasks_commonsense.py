"""The commonsense suite: rows as the hub has them and as the LLM-Adapters papers write them make the same questions."""

import json
import re

import pytest
import yaml
from hydra.utils import instantiate
from reading_tools import write
from refusals import refusal

from rowsft.config.compose import compose
from rowsft.tasks.hellaswag import clean
from rowsft.tasks.multiple_choice import MultipleChoice

COUNT = 12
LETTERS = ["A", "B", "C", "D", "E"]


def choices(i, labels=LETTERS, least=4, most=4):
    texts = [f"first {i}", "second one", "third", "fourth?", "fifth"][: least + i % (most - least + 1)]
    return {"text": texts, "label": list(labels[: len(texts)])}


def listed(word, texts, between=" "):
    return between.join(f"{word.title()}{n}: {text}" for n, text in enumerate(texts, 1))


def form(word, count):
    return "/".join(f"{word}{n}" for n in range(1, count + 1))


def science(i, options):
    head = f"Please choose the correct answer to the question: Why {i}?"
    return f"{head}\n\n{listed('answer', options)}\n\nAnswer format: {form('answer', len(options))}"


#: Of row i: as the hub has it, as an instruction with its answer (None: that form has none), and the question it is.
def boolq(i):
    hub = {"passage": f"About {i}.", "question": f"is it {i}", "answer": i % 3 == 0}
    instruction = (
        f"Please answer the following question with true or false, question: is it {i}?\n\nAnswer format: true/false"
    )
    # Without the passage, which that form lacks.
    return (
        hub,
        (instruction, str(i % 3 == 0).lower()),
        (f"Question: is it {i}?\nAnswer:", ["no", "yes"], int(i % 3 == 0)),
    )


def piqa(i):
    hub = {"goal": f"Open {i}: how?", "sol1": f"Pull {i} ", "sol2": "Push: it", "label": i % 2}
    listing = listed("solution", [hub["sol1"], hub["sol2"]], "\n\n")
    instruction = (
        f"Please choose the correct solution to the question: {hub['goal']}\n\n{listing}"
        "\n\nAnswer format: solution1/solution2"
    )
    question = f"Question: Open {i}: how?\nAnswer:", [f"Pull {i} ", "Push: it"], i % 2
    return hub, (instruction, f"solution{i % 2 + 1}"), question


def social_iqa(i):
    options = [f"go {i}", "stay home", "eat"]
    answers = dict(zip(("answerA", "answerB", "answerC"), options, strict=True))
    hub = {"context": f"Kai met {i}.", "question": "What next?", **answers, "label": str(i % 3 + 1)}
    head = f"Please choose the correct answer to the question: Kai met {i}. What next?"
    instruction = f"{head}\n\n{listed('answer', options)}\n\nAnswer format: {form('answer', 3)}"
    return hub, (instruction, f"answer{i % 3 + 1}"), (f"Q: Kai met {i}. What next?\nA:", options, i % 3)


def hellaswag(i):
    endings = ["runs [step] away.", f"sits {i}.", "[title] eats.", "is here [title] too."]
    hub = {
        "activity_label": f"Roof {i}",
        "ctx_a": "A man is on a roof.",
        "ctx_b": "he" if i % 2 else "",
        "ctx": "A man is on a roof. he" if i % 2 else "A man is on a roof.",
        "endings": endings,
        "label": str(i % 4),
    }
    sentence = f"Roof {i}: A man is on a roof. He" if i % 2 else f"Roof {i}: A man is on a roof."
    instruction = (
        f"Please choose the correct ending to complete the given sentence: {sentence}\n\n{listed('ending', endings)}"
        f"\n\nAnswer format: {form('ending', 4)}"
    )
    cleaned = ["runs away.", f"sits {i}.", " eats.", "is here. too."]
    return hub, (instruction, f"ending{i % 4 + 1}"), (sentence, cleaned, i % 4)


def winogrande(i):
    hub = {"sentence": f"Ann met Bo as _ ran {i}.", "option1": "Ann", "option2": "Bo", "answer": str(i % 2 + 1)}
    head = "Please choose the correct answer to fill in the blank to complete the given sentence"
    instruction = f"{head}: {hub['sentence']}\n\nOption1: Ann Option2: Bo Answer format: option1/option2"
    question = f"{instruction}\n\nthe correct answer is", ["option1", "option2"], i % 2
    return hub, (instruction, f"option{i % 2 + 1}"), question


def arc(i):
    # Three to five options, some labelled by numbers.
    own = choices(i, ["1", "2", "3", "4", "5"] if i % 2 else LETTERS, 3, 5)
    label = i % len(own["text"])
    hub = {"id": f"q{i}", "question": f"Why {i}?", "choices": own, "answerKey": own["label"][label]}
    question = f"Question: Why {i}?\nAnswer:", own["text"], label
    return hub, (science(i, own["text"]), f"answer{label + 1}"), question


def openbookqa(i):
    own = choices(i)
    hub = {"id": f"q{i}", "question_stem": f"Why {i}?", "choices": own, "answerKey": LETTERS[i % 4]}
    return hub, (science(i, own["text"]), f"answer{i % 4 + 1}"), (f"Why {i}?", own["text"], i % 4)


def rte(i):
    hub = {"sentence1": f"It rains on {i}.", "sentence2": "It rains.", "label": i % 2, "idx": i}
    prompt = f"It rains on {i}.\nQuestion: It rains. True or False?\nAnswer:"
    return hub, None, (prompt, ["True", "False"], i % 2)


MAKERS = {
    "boolq": boolq,
    "piqa": piqa,
    "social_iqa": social_iqa,
    "hellaswag": hellaswag,
    "winogrande": winogrande,
    "arc_easy": arc,
    "arc_challenge": arc,
    "openbookqa": openbookqa,
    "rte": rte,
}
#: Whose test split has labels: the others report the validation split.
LABELLED = {"arc_easy", "arc_challenge", "openbookqa"}


def made(name, *overrides):
    return instantiate(compose([f"task=commonsense/{name}", *overrides]).task)


def questions(task):
    rows = [row for part in task.splits().values() for row in part]
    return sorted((row["prompt"], row["options"], row["label"]) for row in rows)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("name", MAKERS)
def test_a_copy_of_the_hub_gives_the_suites_questions(tmp_path, name, kind):
    rows = [MAKERS[name](i) for i in range(3 * COUNT)]
    for place, split in enumerate(("train", "validation", "test")):
        part = [hub for hub, _, _ in rows[place * COUNT : (place + 1) * COUNT]]
        if split == "test" and name not in LABELLED:
            # As the hub has them: labels hidden.
            part = [{key: -1 if key == "label" else value for key, value in row.items()} for row in part]
        write(tmp_path, part, kind, name=split)
    splits = made(name, f"task.data.path={tmp_path}").splits()
    reported = rows[2 * COUNT :] if name in LABELLED else rows[COUNT : 2 * COUNT]
    prompt = "About {}.\n" if name == "boolq" else ""
    first = 2 * COUNT if name in LABELLED else COUNT
    assert [(row["prompt"], row["options"], row["label"]) for row in splits["test"]] == [
        (prompt.format(i) + text, options, label) for i, (_, _, (text, options, label)) in enumerate(reported, first)
    ]
    sizes = {split: len(part) for split, part in splits.items()}
    carved = {"train": COUNT - 1, "validation": 1, "test": COUNT}
    assert sizes == (dict.fromkeys(sizes, COUNT) if name in LABELLED else carved)


def instructions(name, count=COUNT):
    pairs = [MAKERS[name](i)[1] for i in range(count)]
    return [
        {"instruction": text, "input": "", "output": f"the correct answer is {answer}", "answer": answer}
        for text, answer in pairs
    ]


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "rte"])
def test_files_of_instructions_give_the_same_questions(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "train.json").write_text(json.dumps(instructions(name)))
    (tmp_path / "folder" / "test.json").write_text(json.dumps(instructions(name)[:1]))
    (tmp_path / "all.json").write_text(json.dumps(instructions(name)))
    expected = sorted(MAKERS[name](i)[2] for i in range(COUNT))
    assert questions(made(name, f"task.data.path={tmp_path / 'all.json'}")) == expected
    splits = made(name, f"task.data.path={tmp_path / 'folder'}").splits()
    (row,) = splits["test"]
    assert (row["prompt"], row["options"], row["label"]) == MAKERS[name](0)[2]
    assert len(splits["train"]) + len(splits["validation"]) == COUNT


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("piqa", {"instruction": "Which is right?"}, "element 3: column instruction has another form .Which is right"),
        (
            "piqa",
            {"answer": "solution3", "output": "the correct answer is solution3"},
            "element 3: column answer is solution3; expected solution1, solution2",
        ),
        (
            "piqa",
            {"output": "the correct answer is solution2"},
            "element 3: column output is the correct answer is solution2; expected the correct answer is solution1",
        ),
        (
            "boolq",
            {"instruction": boolq(2)[1][0].replace("is it 2", " ")},
            "element 3: column instruction has an empty part",
        ),
        (
            "openbookqa",
            {"instruction": science(2, ["a Answer2: b", "c", "d", "e"])},
            "element 3: column instruction can be read in several ways",
        ),
        ("openbookqa", {"instruction": science(2, ["a", "b", "c"])}, "element 3: column instruction has another form"),
        ("openbookqa", {"answer": ""}, "element 3: no value in column answer"),
    ],
)
def test_a_row_of_another_form_is_named(tmp_path, name, change, said):
    rows = instructions(name)
    rows[2] |= change
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    message = refusal(made(name, f"task.data.path={path}").splits)
    assert re.search(said, message), message
    assert "rows.json" in message


def test_columns_of_neither_form_are_told_with_those_of_the_task(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"goals": "a", "answer": "b"}] * 9))
    assert "no column goal; it has goals, answer; did you mean goals" in refusal(
        made("piqa", f"task.data.path={path}").splits
    )


def test_without_data_at_hand_the_hub_is_asked(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    task = made("arc_challenge")
    assert not task.data_at_hand()
    assert task.tables.data["hub"] == {"id": "allenai/ai2_arc", "config": "ARC-Challenge", "revision": None}
    assert "task.data.hub.id=allenai/ai2_arc: cannot be loaded from the hub" in refusal(task.splits)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("{instruction: 'Q {a}'}", "task.llm_adapters.answers=None: expected a list"),
        ("{answers: [a, b]}", "expected a mapping with the keys instruction, answers, prompt"),
        (
            "{instruction: none, answers: [a, b]}",
            "task.llm_adapters.instruction='none': expected column names in braces",
        ),
    ],
)
def test_wrong_settings_of_the_form_are_named(settings, said):
    data = {"path": "x.json", "validation": 0.1, "test": 0.1}
    form = yaml.safe_load(settings)
    assert said in refusal(MultipleChoice, "own", 16, data, "{q}", ["a", "b"], "label", llm_adapters=form)


def test_texts_are_cleaned_as_the_harness_cleans_them():
    assert clean("  How [title] a thing [step] is  done ") == "How. a thing is done"
