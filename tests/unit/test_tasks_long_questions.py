"""Questions longer than task.max_length with any of their options: cut alike for all of them, dropped or refused."""

import random

import pytest
from reading_tools import questions
from refusals import refusal
from task_tools import CORPUS, bpe
from test_tasks_long_examples import lines
from test_tasks_mix import mix, paths
from tiny import tiny_llama
from tiny_tokenizer import byte_level

from rowsft.batch import IGNORED
from rowsft.config.compose import compose
from rowsft.config.instantiate import instantiated
from rowsft.tasks import Task
from rowsft.tasks.inspection import inspect
from rowsft.tasks.multiple_choice import MultipleChoice

WORDS = " ".join(CORPUS).split()


def rows(count=60):
    draw = random.Random(0)

    def text(most):
        # Beyond ASCII a character may be several tokens; here it is one that the tokenizer does not know.
        return " ".join(draw.choice([*WORDS, "\u00e9"]) for _ in range(draw.randint(1, most)))

    for number in range(count):
        options = [text(6) for _ in range(draw.randint(2, 4))]
        yield {"question": f"{text(12)}{draw.choice(['', ' ', '?'])}", "options": options, "label": number % 2}


def built(tmp_path, **changes):
    return questions(lines(tmp_path, rows()), max_length=24, **changes)


def tokens(tokenizer, example):
    """The prompt's tokens, and those of each option behind it."""
    stem = example["prompt"].rstrip()
    ends = [f"{example['prompt'][len(stem) :]} {option}" for option in example["options"]]
    return tokenizer(stem)["input_ids"], [tokenizer(end, add_special_tokens=False)["input_ids"] for end in ends]


def is_long(tokenizer, example, most=24):
    before, options = tokens(tokenizer, example)
    return len(before) + max(map(len, options)) > most


def parts(row):
    answer = [label for label in row["labels"] if label != IGNORED]
    return row["input_ids"][: -len(answer)], answer


class Recording(MultipleChoice):
    """Keeps what evaluation has scored."""

    def score_answers(self, model, encoded, *rest):
        self.scored = encoded
        return super().score_answers(model, encoded, *rest)


@pytest.mark.parametrize("bos", [False, True])
def test_all_options_of_a_question_stand_behind_the_same_prompt(tmp_path, bos):
    tokenizer = bpe(bos=bos)
    task = built(tmp_path)
    task.__class__ = Recording
    examples = task.splits()["train"]
    task.evaluate(tiny_llama(), examples, tokenizer, 8)
    scored = iter(task.scored)
    cut = 0
    for example, trained in zip(examples, task.encode(examples, tokenizer), strict=True):
        before, options = tokens(tokenizer, example)
        excess = max(0, len(before) + max(map(len, options)) - 24)
        expected = before if not excess else before[: int(bos)] + before[int(bos) + excess :]
        own = [parts(next(scored)) for _ in options]
        assert own == [(expected, option) for option in options]
        assert parts(trained) == own[example["label"]]
        cut += excess > 0
    assert 5 < cut < len(examples) - 5


def test_an_option_that_fills_the_length_leaves_one_token_to_all(tmp_path):
    example = {"id": "a", "prompt": "the cat is", "options": ["a " * 40, "b"], "label": 1}
    task = built(tmp_path)
    task.__class__ = Recording
    task.evaluate(tiny_llama(), [example], bpe(), 8)
    (first, long), (second, short) = map(parts, task.scored)
    assert len(first) == 1 and first == second == tokens(bpe(), example)[0][-1:]
    assert (len(long), len(short)) == (23, len(tokens(bpe(), example)[1][1]))


def test_what_is_too_long_with_any_option_is_counted_dropped_or_refused(tmp_path):
    tokenizer, task = bpe(bos=True), built(tmp_path)
    before = {name: list(own) for name, own in task.splits().items()}
    long = {name: [is_long(tokenizer, row) for row in own] for name, own in before.items()}
    right = [sum(map(len, parts(row))) for row in task.with_max_length(999).encode(before["train"], tokenizer)]
    assert sum(long["train"]) > sum(size > 24 for size in right), "some by a wrong option alone"
    expected = {name: sum(found) for name, found in long.items()}
    assert all(0 < count < len(before[name]) for name, count in expected.items())
    task.limit_lengths(tokenizer, before)
    assert task.splits() == before and task.about()["counts"]["long_examples_truncated"] == expected
    inspected = inspect(built(tmp_path), tokenizer, examples=0)
    assert {name: split.longer for name, split in inspected.splits.items()} == expected
    task = built(tmp_path, long_examples="drop")
    task.limit_lengths(tokenizer, before)
    for name, own in before.items():
        assert task.splits()[name] == [row for row, gone in zip(own, long[name], strict=True) if not gone]
    assert task.about()["counts"]["long_examples_dropped"] == expected
    task = built(tmp_path, long_examples="refuse")
    assert f"{expected['train']} of {len(before['train'])} train examples have more than task.max_length=24" in refusal(
        task.limit_lengths, tokenizer, ["train"]
    )


def test_a_mix_counts_drops_and_refuses_by_its_tasks(tmp_path):
    tokenizer, given = byte_level(), paths(tmp_path, ["boolq", "piqa"], count=40)
    # Bytes are tokens here: the shortest questions of the task with the longer ones just fit.
    least = {}
    for row in mix(*given).splits()["train"]:
        size = len(row["prompt"]) + 1 + max(map(len, row["options"]))
        least[row["task"]] = min(size, least.get(row["task"], size))
    most = max(least.values())
    given.append(f"task.max_length={most}")
    task = mix(*given)
    before = {name: list(own) for name, own in task.splits().items()}
    long = {
        name: [task.tasks[row["task"]].too_long([row], tokenizer)[0] for row in own] for name, own in before.items()
    }
    expected = {name: sum(found) for name, found in long.items()}
    assert 0 < expected["train"] < len(before["train"])
    task.limit_lengths(tokenizer, before)
    counts = task.about()["counts"]
    assert counts["long_examples_truncated"] == expected and set(counts) > {"boolq", "piqa"}
    inspected = inspect(mix(*given), tokenizer, examples=0)
    assert inspected.splits["train"].longer == expected["train"]
    assert inspected.splits["train"].lengths.tokens.max > most, "measured before anything is cut"
    task = mix(*given, "task.long_examples=drop")
    task.limit_lengths(tokenizer, ["train"])
    assert task.splits()["train"] == [row for row, gone in zip(before["train"], long["train"], strict=True) if not gone]
    assert task.about()["counts"]["long_examples_dropped"] == {"train": expected["train"]}
    task = mix(*given, "task.long_examples=refuse")
    assert f"train examples have more than task.max_length={most} tokens" in refusal(
        task.limit_lengths, tokenizer, ["train"]
    )


def test_a_mix_loses_no_task_without_a_word(tmp_path):
    given = [*paths(tmp_path, ["boolq", "piqa"], count=40), "task.long_examples=drop"]
    lengths = {}
    for name, own in mix(*given).tasks.items():
        rows = own.splits()["train"]
        lengths[name] = sorted(len(row["prompt"]) + max(map(len, row["options"])) for row in rows)
    # Between the longest of one and the shortest of the other, in bytes that are tokens.
    short, long = sorted(lengths, key=lambda name: lengths[name][0])
    most = lengths[long][0]
    task = mix(*given, f"task.max_length={most}")
    said = refusal(task.limit_lengths, byte_level(), ["train"])
    assert f"task.long_examples=drop: all train examples of {long} have more than" in said, (said, short)


def test_a_task_of_a_mix_has_the_setting_of_the_mix(tmp_path):
    config = compose(["task=commonsense/mix", *paths(tmp_path, ["piqa"]), "task.tasks.piqa.long_examples=drop"])
    said = refusal(lambda: instantiated("task", config.task, Task))
    assert "task.tasks.piqa.long_examples=drop: differs from task.long_examples=truncate" in said


@pytest.mark.parametrize("choice", ["cut", None])
def test_another_word_is_refused(tmp_path, choice):
    assert "expected truncate, drop, refuse" in refusal(lambda: built(tmp_path, long_examples=choice))
