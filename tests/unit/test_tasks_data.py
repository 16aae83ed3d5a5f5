"""Parsers and splits: what is dropped, what is kept together, what a split depends on."""

import json
import random

import pytest
from task_tools import bpe
from tiny import tiny_llama

from rowsft.batch import IGNORED
from rowsft.errors import UserError
from rowsft.tasks import sentiment, social_iqa, stsb
from rowsft.tasks.local_data import Tables
from rowsft.tasks.splits import fold, limit, split_by_hash


def examples(count):
    return [{"id": f"row-{i}", "text": f"text {i // 2}"} for i in range(count)]


def test_splits_depend_on_content_alone_and_keep_groups_whole():
    rows = examples(100)
    splits = split_by_hash(rows, lambda row: row["text"], validation=11, test=20)
    # Groups hold two: an odd size is exceeded by the rest of the last group.
    assert {name: len(part) for name, part in splits.items()} == {"train": 68, "validation": 12, "test": 20}
    texts = {name: {row["text"] for row in part} for name, part in splits.items()}
    assert not texts["train"] & texts["test"] and not texts["train"] & texts["validation"]
    assert not texts["validation"] & texts["test"]
    shuffled = list(rows)
    random.Random(3).shuffle(shuffled)
    again = split_by_hash(shuffled, lambda row: row["text"], validation=11, test=20)
    for name in splits:
        assert {row["id"] for row in again[name]} == {row["id"] for row in splits[name]}
    other = split_by_hash(rows, lambda row: row["text"], validation=11, test=20, seed=1)
    assert {row["id"] for row in other["test"]} != {row["id"] for row in splits["test"]}


def test_limits_take_the_same_examples_whatever_else_is_there():
    rows = examples(100)
    few = limit({"train": rows}, {"train": 10})["train"]
    assert len(few) == 10 and few != rows[:10]
    assert few == [row for row in rows if row in few]
    assert set(map(str, limit({"train": rows}, {"train": 5})["train"])) <= set(map(str, few))
    assert limit({"train": rows}, {"train": None})["train"] == rows
    with pytest.raises(UserError, match="task.limits.dev.*train, validation, test"):
        limit({"train": rows}, {"dev": 1})
    with pytest.raises(UserError, match="task.limits.train=0"):
        limit({"train": rows}, {"train": 0})


def test_sentiment_drops_zero_ratings_and_repeats_and_labels_by_sign():
    lines = ["1\t2.5\tGood  film.", "2\t-0.5\tDull\x85 film.", "3\t0.0\tA film.", "4\t-3\tgood film."]
    assert sentiment.parse("\n".join(lines) + "\n") == [
        {"id": "snippet-1", "text": "Good  film.", "label": 1},
        {"id": "snippet-2", "text": "Dull\x85 film.", "label": 0},
    ]


def test_stsb_splits_on_tabs_and_leaves_quotes_alone():
    lines = ['a\tb\tc\t7\t3.8\tHe said "no.\tHe said "yes".', "a\tb\tc\t8\t0\tOne\u2028two\tThree \textra\tcolumns"]
    first, second = stsb.parse("\n".join(lines) + "\n", "dev")
    assert first == {"id": "dev-0", "text": 'He said "no.', "pair": 'He said "yes".', "label": 3.8}
    assert second == {"id": "dev-1", "text": "One\u2028two", "pair": "Three", "label": 0.0}


def test_stsb_overlap_leaves_test_whole_then_validation():
    def pair(name, a, b):
        return {"id": name, "text": a, "pair": b, "label": 1.0}

    splits = {
        "train": [pair("t0", "A cat.", "A dog."), pair("t1", "x", "y"), pair("t2", "u", "v")],
        "validation": [pair("v0", "a  DOG.", "a cat."), pair("v1", "y", "X"), pair("v2", "p", "q")],
        "test": [pair("e0", "A dog.", "A cat.")],
    }
    kept = {name: [row["id"] for row in rows] for name, rows in stsb.without_overlap(splits).items()}
    assert kept == {"train": ["t2"], "validation": ["v1", "v2"], "test": ["e0"]}


def item(context, question, options, ideal):
    a, b, c = options
    content = f"{context} {question} A: {a}; B: {b}; C: {c}."
    return json.dumps({"input": [{"role": "user", "content": content}], "ideal": ideal})


def test_social_iqa_items_are_taken_apart_and_repeats_dropped():
    line = item("Kai met Dr. Lee. They left.", "What's next?", ["go home", "stay; wait", "eat"], "B")
    (example,) = social_iqa.parse("\n".join([line, line]))
    assert example == {
        "id": "item-0",
        "context": "Kai met Dr. Lee. They left.",
        "question": "What's next?",
        "options": ["go home", "stay; wait", "eat"],
        "label": 1,
    }


def social_iqa_task(**changes):
    settings = {"name": "social_iqa", "max_length": 64, "validation": 1, "test": 1}
    return social_iqa.SocialIqa(**{**settings, **changes})


def test_social_iqa_choices_follow_brute_force_log_likelihoods():
    task, tokenizer, model = social_iqa_task(), bpe(), tiny_llama()
    rows = [
        {"id": f"i{i}", "context": f"the {animal} is happy.", "question": "what next?", "options": options, "label": i}
        for i, (animal, options) in enumerate(
            [("cat", ["sleep", "want to be good", "sun"]), ("dog", ["a", "b", "how would"])]
        )
    ]
    result = task.evaluate(model, rows, tokenizer, batch_size=4)
    sums, right_sum, right_tokens = [], 0.0, 0
    for row in rows:
        prompt = tokenizer(f"Q: {row['context']} {row['question']}\nA:")["input_ids"]
        sums.append([])
        for number, option in enumerate(row["options"]):
            answer = tokenizer(f" {option}")["input_ids"]
            value = causal_reference(model, prompt, answer)
            sums[-1].append(value)
            if number == row["label"]:
                right_sum, right_tokens = right_sum + value, right_tokens + len(answer)
    for row, values, prediction in zip(rows, sums, result.predictions, strict=True):
        norms = [value / len(option) for value, option in zip(values, row["options"], strict=True)]
        assert prediction["id"] == row["id"] and prediction["label"] == row["label"]
        assert prediction["scores"] == pytest.approx(values, abs=1e-4)
        assert prediction["prediction_sum"] == values.index(max(values))
        assert prediction["prediction"] == norms.index(max(norms))
    hits = [p["prediction"] == p["label"] for p in result.predictions]
    sum_hits = [p["prediction_sum"] == p["label"] for p in result.predictions]
    assert result.metrics["accuracy_norm"] == sum(hits) / 2 and result.metrics["accuracy_sum"] == sum(sum_hits) / 2
    assert result.metrics["loss"] == pytest.approx(-right_sum / right_tokens, rel=1e-5)
    assert task.reference_metrics(model, rows, tokenizer) == {"chance_accuracy": pytest.approx(1 / 3)}


def causal_reference(model, prompt, answer):
    import torch

    log_p = model(input_ids=torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
    return sum(log_p[len(prompt) + i - 1, token].item() for i, token in enumerate(answer))


def test_social_iqa_trains_on_the_right_answer_alone():
    task, tokenizer = social_iqa_task(), bpe()
    row = {"id": "i", "context": "the cat.", "question": "what?", "options": ["sun", "sleep", "eat"], "label": 1}
    (example,) = task.encode([row], tokenizer)
    assert tokenizer.decode([label for label in example["labels"] if label != IGNORED]) == " sleep"
    assert tokenizer.decode(example["input_ids"]) == "Q: the cat. what?\nA: sleep"


@pytest.mark.slow
def test_real_social_iqa_has_no_context_in_two_splits():
    splits = social_iqa_task(validation=300, test=624).splits()
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 1279, "validation": 300, "test": 624}
    contexts = [{fold(row["context"]) for row in rows} for rows in splits.values()]
    assert sum(map(len, contexts)) == len(set.union(*contexts))
    assert all(len(row["options"]) == 3 and row["question"].endswith("?") for rows in splits.values() for row in rows)


@pytest.mark.slow
def test_real_sentiment_is_balanced_and_without_leaks():
    splits = sentiment.Sentiment("sentiment", 64, validation=1000, test=2000).splits()
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 7566, "validation": 1000, "test": 2000}
    texts = [{fold(row["text"]) for row in rows} for rows in splits.values()]
    assert sum(map(len, texts)) == len(set.union(*texts)) == 10566
    assert all(0.45 < sum(row["label"] for row in rows) / len(rows) < 0.55 for rows in splits.values())


@pytest.mark.slow
def test_real_stsb_keeps_test_whole():
    task = stsb.Stsb("stsb", 128)
    assert task.about()["sizes"] == {"train": 5725, "validation": 1497, "test": 1379}
    labels = [row["label"] for row in task.splits()["test"]]
    assert min(labels) == 0.0 and max(labels) == 5.0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty; expected at least one row"),
        (b"\n\n", "the file is empty; expected at least one row"),
        ('{"text": "caf\u00e9"}\n'.encode("latin-1"), "not UTF-8 text .*iconv"),
        (b'{"text": "one"}\n', "1 rows with 1 different texts cannot be cut into 3 splits; give more rows"),
        (b'{"text": "one"}\n' * 9, "9 rows with 1 different texts cannot be cut into 3 splits"),
    ],
)
def test_a_file_that_cannot_make_three_splits_says_why(tmp_path, content, said):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(content)
    data = {"path": str(path), "validation": 0.2, "test": 0.2}
    with pytest.raises(UserError, match=said):
        Tables(data).read(["text"], ["text"])
