"""Answers that share a prompt: scored as if each had its own, in batches that are no larger than was asked for."""

import random

import pytest
import torch
from task_tools import bpe
from tiny import tiny_gpt2, tiny_llama

from rowsft.tasks.causal import encode_answers
from rowsft.tasks.choice import ChoiceTask
from rowsft.tasks.evaluating import run_batches

WORDS = ["cat", "dog", "the sun", "is", "happy to be", "slow", "a dull film", "good"]


class Questions(ChoiceTask):
    primary_metric = "accuracy_sum"

    def _read(self):
        return {}

    def _facts(self):
        return {}


TASK = Questions("questions", max_length=60)


def encoded(counts):
    """Answers in random order, `counts` of them to each prompt."""
    draw = random.Random(0)
    pairs = []
    for number, count in enumerate(counts):
        prompt = " ".join(draw.choice(WORDS) for _ in range(1 + 2 * number))
        pairs += [(prompt, " " + " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, 4)))) for _ in range(count)]
    draw.shuffle(pairs)
    return encode_answers(bpe(bos=True), *zip(*pairs, strict=True), 60, end=False)


def rows_of_forwards(model, work):
    """What `work` returns, and the (rows, tokens with those before) of every forward of `model` in it."""
    rows = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(tuple(kwargs["attention_mask"].shape)), with_kwargs=True
    )
    try:
        return work(), rows
    finally:
        handle.remove()


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("counts", [[40], [3, 40, 1, 8], [2, 3, 2, 4]])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_batch_holds_as_many_answers_as_was_asked_for(make, counts, batch_size):
    model, rows = make(), encoded(counts)
    scores, sizes = rows_of_forwards(model, lambda: TASK.score_answers(model, rows, bpe(), batch_size=batch_size))
    assert max(count for count, _ in sizes) <= batch_size
    assert max(tokens for _, tokens in sizes) <= TASK.max_length
    alone = run_batches(model, rows, TASK.collator(bpe(), model), 1, None, TASK.read_batch)
    for score, own in zip(scores, alone, strict=True):
        assert score.log_likelihood == pytest.approx(own.log_likelihood, abs=1e-4)
        assert (score.tokens, score.greedy_matches) == (own.tokens, own.greedy_matches)


def test_the_longest_prompt_and_the_longest_answer_of_two_examples_are_no_batch():
    model = tiny_llama()
    pairs = [("a " * 25, " b"), ("a " * 25, " c"), ("a", " b" * 25), ("a", " c" * 25)]
    rows = encode_answers(bpe(), *zip(*pairs, strict=True), 60, end=False)
    assert max(len(row["input_ids"]) for row in rows) <= 60
    scores, sizes = rows_of_forwards(model, lambda: TASK.score_answers(model, rows, bpe(), batch_size=4))
    assert max(tokens for _, tokens in sizes) <= 60
    alone = run_batches(model, rows, TASK.collator(bpe(), model), 1, None, TASK.read_batch)
    assert [score.log_likelihood for score in scores] == pytest.approx([own.log_likelihood for own in alone], abs=1e-4)


def test_one_prompt_is_read_once_where_its_answers_fit():
    model, rows = tiny_llama(), encoded([6])
    _, sizes = rows_of_forwards(model, lambda: TASK.score_answers(model, rows, bpe(), batch_size=6))
    assert [count for count, _ in sizes] == [1, 6]


def test_answers_of_one_token_need_one_pass():
    model, rows = tiny_llama(), encode_answers(bpe(), ["the cat"] * 3, ["a", "b", "c"], 60, end=False)
    assert all(sum(label >= 0 for label in row["labels"]) == 1 for row in rows)
    scores, sizes = rows_of_forwards(model, lambda: TASK.score_answers(model, rows, bpe(), batch_size=8))
    with torch.no_grad():
        log_p = model(torch.tensor([rows[0]["input_ids"][:-1]])).logits[0, -1].log_softmax(-1)
    assert [count for count, _ in sizes] == [1]
    assert [score.log_likelihood for score in scores] == pytest.approx(
        [log_p[row["labels"][-1]].item() for row in rows], abs=1e-5
    )
