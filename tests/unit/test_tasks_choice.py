"""Multiple choice: every normalisation against log-likelihoods computed one by one in float64."""

import pytest
import torch
from refusals import refusal
from task_tools import bpe
from tiny import tiny_gpt2, tiny_llama

from rowsft.batch import IGNORED
from rowsft.tasks.choice import ChoiceTask

# Options of other length in tokens, characters and bytes, three and two to a question.
ROWS = [
    {"id": "a", "prompt": "the cat is happy.\nA:", "options": ["sleep", "want to be good", "sun"], "label": 1},
    {"id": "b", "prompt": "the dog is slow.\nA:", "options": ["h\u00e9", "how would"], "label": 0},
    {"id": "c", "prompt": "what will the cat do?", "options": ["be\u4e2d\u4e2d", "a", "the sun", "fun"], "label": 3},
    {"id": "d", "prompt": "the dog is slow.\nA:", "options": ["sleep", "sun", "a dull film"], "label": 2},
]


class Questions(ChoiceTask):
    primary_metric = "accuracy_bytes"

    def _read(self):
        return dict.fromkeys(("train", "validation", "test"), ROWS)

    def _facts(self):
        return {}


def task(domain=None, delimiter=" "):
    built = Questions("questions", max_length=64)
    built.domain_prompt, built.delimiter = domain, delimiter
    return built


def log_likelihood(model, tokenizer, prompt, answer):
    """(nats, tokens), in float64, of one sequence without padding."""
    before = tokenizer(prompt)["input_ids"] or [tokenizer.bos_token_id]
    after = tokenizer(answer, add_special_tokens=False)["input_ids"]
    logits = model.double()(input_ids=torch.tensor([before + after])).logits[0]
    log_p = logits.log_softmax(-1)[len(before) - 1 : -1]
    return log_p[torch.arange(len(after)), torch.tensor(after)].sum().item(), len(after)


def first_best(values):
    return values.index(max(values))


@pytest.mark.parametrize("domain", [None, "A:", ""])
@pytest.mark.parametrize(("make", "batch_size"), [(tiny_llama, 1), (tiny_llama, 5), (tiny_gpt2, 32)])
def test_every_choice_follows_brute_force_log_likelihoods(make, batch_size, domain):
    built, tokenizer = task(domain), bpe()
    result = built.evaluate(make(), ROWS, tokenizer, batch_size=batch_size)
    reference = make().eval()
    hits = dict.fromkeys(["sum", "norm", "bytes", "tokens", *(["pmi"] if domain is not None else [])], 0)
    for row, prediction in zip(ROWS, result.predictions, strict=True):
        pairs = [log_likelihood(reference, tokenizer, row["prompt"], f" {option}") for option in row["options"]]
        sums, tokens = [nats for nats, _ in pairs], [count for _, count in pairs]
        expected = {
            "sum": sums,
            "norm": [nats / len(option) for nats, option in zip(sums, row["options"], strict=True)],
            "bytes": [nats / len(option.encode()) for nats, option in zip(sums, row["options"], strict=True)],
            "tokens": [nats / count for nats, count in pairs],
        }
        if domain is not None:
            alone = [log_likelihood(reference, tokenizer, domain, f" {option}")[0] for option in row["options"]]
            expected["pmi"] = [nats - less for nats, less in zip(sums, alone, strict=True)]
            assert prediction["domain_scores"] == pytest.approx(alone, abs=1e-4)
        assert prediction["id"] == row["id"] and prediction["label"] == row["label"]
        assert prediction["scores"] == pytest.approx(sums, abs=1e-4) and prediction["option_tokens"] == tokens
        assert prediction["option_characters"] == [len(option) for option in row["options"]]
        assert prediction["option_bytes"] == [len(option.encode()) for option in row["options"]]
        assert {name: prediction[f"prediction_{name}"] for name in expected} == {
            name: first_best(values) for name, values in expected.items()
        }
        assert prediction["prediction"] == first_best(expected["bytes"])
        assert prediction["negative_log_likelihood"] == pytest.approx(-sums[row["label"]], abs=1e-4)
        for name, values in expected.items():
            hits[name] += first_best(values) == row["label"]
    accuracies = {name: value for name, value in result.metrics.items() if name.startswith("accuracy")}
    assert accuracies == {f"accuracy_{name}": count / len(ROWS) for name, count in hits.items()}
    assert {"loss", "perplexity", "bits_per_byte", "token_accuracy"} <= set(result.metrics)


def test_the_normalisations_differ_on_these_questions():
    # Otherwise the test above could not tell one from another.
    result = task("A:").evaluate(tiny_llama(), ROWS, bpe(), batch_size=8)
    chosen = {
        name: tuple(row[f"prediction_{name}"] for row in result.predictions)
        for name in ("sum", "norm", "bytes", "tokens", "pmi")
    }
    assert len(set(chosen.values())) >= 4, chosen


@pytest.mark.parametrize("metaspace", [False, True])
def test_scores_do_not_depend_on_the_side_that_a_tokenizer_pads(metaspace):
    found = {}
    for side in ("left", "right"):
        tokenizer = bpe(metaspace=metaspace, bos=metaspace)
        tokenizer.padding_side = side
        result = task("A:").evaluate(tiny_llama(), ROWS, tokenizer, batch_size=5)
        found[side] = [(row["scores"], row["domain_scores"]) for row in result.predictions]
    assert found["left"] == found["right"]


def test_white_space_at_the_end_of_a_prompt_is_scored_with_the_option():
    tokenizer = bpe()
    (row,) = task(delimiter="").encode([{**ROWS[0], "prompt": "the cat is \n"}], tokenizer)
    assert tokenizer.decode([label for label in row["labels"] if label != IGNORED]) == " \nwant to be good"
    assert tokenizer.decode(row["input_ids"]) == "the cat is \nwant to be good"


def test_training_shows_the_right_option_alone():
    tokenizer = bpe()
    (row,) = task().encode([ROWS[0]], tokenizer)
    assert tokenizer.decode([label for label in row["labels"] if label != IGNORED]) == " want to be good"
    assert tokenizer.decode(row["input_ids"]) == "the cat is happy.\nA: want to be good"


def test_chance_is_that_of_questions_with_their_own_number_of_options():
    chance = task().reference_metrics(None, ROWS, None)["chance_accuracy"]
    assert chance == pytest.approx((1 / 3 + 1 / 2 + 1 / 4 + 1 / 3) / 4)


def test_an_option_without_a_token_is_refused():
    tokenizer = bpe()
    # Characters that it does not know vanish.
    tokenizer.backend_tokenizer.model.unk_token = None
    row = {**ROWS[0], "options": ["sun", "\u4e2d"], "label": 0}
    said = refusal(task(delimiter="").evaluate, tiny_llama(), [row], tokenizer, 4)
    assert "example a: the tokenizer has no token for the option \u4e2d" in said
