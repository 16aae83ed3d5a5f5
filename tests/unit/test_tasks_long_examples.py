"""Examples longer than task.max_length: truncated, dropped or refused, and counted as the tokenizer counts."""

import json
import random

import pytest
from reading_tools import classification, responses
from refusals import refusal
from task_tools import CORPUS, bpe, words

from rowsft.config.compose import compose
from rowsft.config.run_spec import run_spec
from rowsft.store.identity import run_id


def lines(tmp_path, rows):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def texts(count, longest):
    draw = random.Random(0)
    known = " ".join(CORPUS).split()
    some = [" ".join(draw.choice(known) for _ in range(draw.randint(1, longest))) for _ in range(count)]
    # Beyond ASCII a character may be several tokens.
    return [text if i % 5 else f"\u00e9\u4e2d {text}" for i, text in enumerate(some)]


def single(tmp_path, **changes):
    rows = [{"text": text, "label": "ab"[i % 2]} for i, text in enumerate(texts(80, 20))]
    return classification(lines(tmp_path, rows), max_length=12, **changes), words()


def paired(tmp_path, **changes):
    known = texts(160, 6)
    rows = [{"text": known[2 * i], "pair": known[2 * i + 1], "label": "ab"[i % 2]} for i in range(80)]
    return classification(lines(tmp_path, rows), {"pair": "pair"}, max_length=12, **changes), words()


def prompted(tmp_path, **changes):
    known = texts(160, 9)
    rows = [{"prompt": known[2 * i], "response": known[2 * i + 1]} for i in range(80)]
    return responses(lines(tmp_path, rows), **changes), bpe(bos=True)


def whole_length(example, tokenizer):
    """Tokens of an example that nothing cuts."""
    if "prompt" in example:
        parts = tokenizer(example["prompt"])["input_ids"], tokenizer(example["response"], add_special_tokens=False)
        return len(parts[0]) + len(parts[1]["input_ids"]) + 1
    return len(tokenizer(example["text"], example.get("pair"))["input_ids"])


@pytest.mark.parametrize("build", [single, paired, prompted])
def test_what_is_too_long_is_counted_dropped_or_refused(tmp_path, build):
    task, tokenizer = build(tmp_path)
    before = {name: list(rows) for name, rows in task.splits().items()}
    long = {name: [whole_length(row, tokenizer) > task.max_length for row in rows] for name, rows in before.items()}
    assert all(any(found) and not all(found) for found in long.values())
    expected = {name: sum(found) for name, found in long.items()}
    task.limit_lengths(tokenizer, before)
    assert task.splits() == before
    assert task.about()["counts"]["long_examples_truncated"] == expected
    task, _ = build(tmp_path, long_examples="drop")
    task.limit_lengths(tokenizer, ["train", "test", "test"])
    for name in ("train", "test"):
        assert task.splits()[name] == [
            row for row, is_long in zip(before[name], long[name], strict=True) if not is_long
        ]
    about = task.about()
    assert about["counts"]["long_examples_dropped"] == {name: expected[name] for name in ("train", "test")}
    assert about["sizes"] == {name: len(rows) for name, rows in task.splits().items()}
    assert task.splits()["validation"] == before["validation"]
    task, _ = build(tmp_path, long_examples="refuse")
    said = refusal(task.limit_lengths, tokenizer, ["train"])
    first = before["train"][long["train"].index(True)]["id"]
    assert f"{expected['train']} of {len(before['train'])} train examples have more than task.max_length=" in said
    assert f"the first of them {first}; raise task.max_length" in said


def test_nothing_is_left_of_a_split_whose_examples_are_all_too_long(tmp_path):
    rows = [{"text": f"a film that is {i}", "label": "ab"[i % 2]} for i in range(20)]
    task = classification(lines(tmp_path, rows), max_length=4, long_examples="drop")
    assert "all 12 of 12 train examples have more than task.max_length=4 tokens" in refusal(
        task.limit_lengths, words(), ["train"]
    )


@pytest.mark.parametrize("choice", ["cut", True, None, ["drop"]])
def test_another_word_is_refused(tmp_path, choice):
    assert "expected truncate, drop, refuse" in refusal(lambda: single(tmp_path, long_examples=choice))


@pytest.mark.parametrize(
    ("task", "earlier"),
    [
        ("text_classification", None),
        ("prompt_response", None),
        ("multiple_choice", "637d7fa2ebd1"),
        ("social_iqa", "49c4ea11717a"),
        ("commonsense/piqa", "432c8b30a294"),
        ("commonsense/mix", "361c8226ea64"),
    ],
)
def test_the_default_is_in_no_id(task, earlier):
    """earlier: the id from before the task had the setting."""
    config = run_spec(compose([f"task={task}", "method=lora"])).config
    before = {**config, "task": {key: value for key, value in config["task"].items() if key != "long_examples"}}
    assert run_id(before) == run_id(config) == (earlier or run_id(config))
    assert run_id(run_spec(compose([f"task={task}", "method=lora", "task.long_examples=drop"])).config) != run_id(
        config
    )
