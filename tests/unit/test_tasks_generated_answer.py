"""Answers that a model writes, read for their final number."""

import json

import pytest
import torch
from tiny import tiny_llama
from tiny_tokenizer import byte_level

from rowsft.errors import UserError
from rowsft.tasks.generated_answer import GeneratedAnswer

SETTINGS = {"prompt": "Q: {question}\\nA:", "response": " {answer}", "max_length": 96, "max_new_tokens": 32}
DATA = {"validation": 0.2, "test": 0.2}


def problems(count):
    answers = [f"It is <<{i}+{i}={2 * i}>>{2 * i}.\n#### {2 * i}" for i in range(count)]
    return [{"question": f"{i} and {i}?", "answer": answer} for i, answer in enumerate(answers)]


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def task(path, **changes):
    return GeneratedAnswer("sums", data={"path": path, **DATA}, **{**SETTINGS, **changes})


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "sums.jsonl", problems(20))


def model(**changes):
    return tiny_llama(vocab_size=260, max_position_embeddings=128, **changes)


def taught(built, examples, tokenizer, steps=150):
    """A model that has learned the responses by heart."""
    learner = model(hidden_size=64, intermediate_size=128).train()
    batch = built.collator(tokenizer, learner)(built.encode(examples, tokenizer))
    optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-2)
    for _ in range(steps):
        learner(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return learner


def test_what_was_learned_by_heart_matches_exactly_and_what_was_not_does_not(path):
    built, tokenizer = task(path), byte_level()
    examples = built.splits()["test"]
    learner = taught(built, examples, tokenizer)
    result = built.evaluate(learner, examples, tokenizer, batch_size=3)
    assert result.metrics["exact_match"] == 1.0
    for row, example in zip(result.predictions, examples, strict=True):
        assert row["id"] == example["id"] and row["generated"] == example["response"]
        assert row["prediction"] == row["label"] == example["response"].split("#### ")[1]
        # The end-of-sequence token counts; here a token is a byte.
        assert row["stopped"] and row["generated_tokens"] == len(example["response"].encode()) + 1
        assert row["prompt_tokens_cut"] == 0 and row["negative_log_likelihood"] > 0
    other = [{**example, "number": "1000"} for example in examples[:1]] + examples[1:]
    assert built.evaluate(learner, other, tokenizer, batch_size=3).metrics["exact_match"] == 0.75
    fresh = built.evaluate(model(), examples, tokenizer, batch_size=3)
    assert fresh.metrics["exact_match"] == 0.0
    assert fresh.metrics["loss"] > result.metrics["loss"] > 0


def test_what_ends_at_the_limit_says_so(path):
    built, tokenizer = task(path, max_new_tokens=8), byte_level()
    examples = built.splits()["test"]
    result = built.evaluate(taught(built, examples, tokenizer), examples, tokenizer, batch_size=4)
    assert {row["generated_tokens"] for row in result.predictions} == {8}
    assert not any(row["stopped"] for row in result.predictions)
    assert result.metrics["exact_match"] == 0.0
    assert [row["generated"] for row in result.predictions] == [example["response"][:8] for example in examples]


def test_nothing_read_is_an_empty_prediction_and_wrong(path):
    built, tokenizer = task(path, stop=[" "]), byte_level()
    examples = built.splits()["test"]
    # The response begins with the text that ends it.
    result = built.evaluate(taught(built, examples, tokenizer, 60), examples, tokenizer, batch_size=4)
    assert [row["prediction"] for row in result.predictions] == [""] * 4 and result.metrics["exact_match"] == 0.0
    assert {row["generated"] for row in result.predictions} == {""}
    assert {row["generated_tokens"] for row in result.predictions} == {1}
    assert all(row["stopped"] for row in result.predictions)


def test_the_prompt_is_that_of_training(path):
    built, tokenizer = task(path), byte_level()
    examples, seen = built.splits()["test"], []
    watched = model()
    watched.register_forward_pre_hook(lambda module, args, given: seen.append(given), with_kwargs=True)
    built.evaluate(watched, examples, tokenizer, batch_size=1)
    # Scoring gives no cache, and what follows the prompt is one token at a time.
    prefills = [g["input_ids"][0].tolist() for g in seen if g.get("use_cache") and g["input_ids"].shape[1] > 1]
    trained = [
        [token for token, label in zip(one["input_ids"], one["labels"], strict=True) if label == -100]
        for one in built.encode(examples, tokenizer)
    ]
    assert sorted(prefills) == sorted(trained) and len(prefills) == len(examples)


def test_a_prompt_that_leaves_too_little_room_loses_its_start_and_says_how_much(path):
    built, tokenizer = task(path, max_length=40), byte_level()
    long = {"id": "x", "prompt": "the start " * 3 + "and the end", "response": " 1", "number": "1"}
    (row,) = built.evaluate(model(), [long], tokenizer, batch_size=1).predictions
    assert row["prompt_tokens_cut"] == len(long["prompt"]) - 8 and row["generated_tokens"] <= 32


def test_a_response_without_a_number_is_refused_by_its_place(tmp_path):
    rows = [*problems(9), {"question": "what?", "answer": "I do not know"}]
    with pytest.raises(UserError, match=r"sums.jsonl, line 10: no final number in the response 'I do not know'; give"):
        task(write(tmp_path / "sums.jsonl", rows)).splits()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_new_tokens": 96}, "task.max_new_tokens=96: leaves no token of task.max_length=96"),
        ({"max_new_tokens": 0}, "task.max_new_tokens=0: expected a whole number, at least 1"),
        ({"stop": "Question:"}, "task.stop=Question:: expected a list"),
        ({"stop": ["a", ""]}, "is no text that could end another"),
        ({"stop": [3]}, "task.stop=.*: 3 is no text that could"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_data_are_read(changes, words):
    with pytest.raises(UserError, match=words):
        task("never read", **changes)


def test_a_plan_knows_the_longest_prompt_that_is_continued(path):
    built, tokenizer = task(path), byte_level()
    texts = [("a" * 20, " #### 1"), ("a" * 80, " 1"), ("a" * 50, " " + "so " * 20 + "1")]
    encoded = built.encode([{"prompt": prompt, "response": response} for prompt, response in texts], tokenizer)
    # Of 96 tokens at most, 32 are kept free for what is written.
    assert [built.size(one).prompt for one in encoded] == [20, 64, 64]
