"""Answers under a language model: boundary, left padding and logits at the answers, against plain forwards."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from task_tools import bpe
from tiny import tiny_gpt2, tiny_llama

from rowsft.tasks import causal
from rowsft.tasks.prompt_response import PromptResponse

PAIRS = [
    ("what will the cat want?", " sleep in the sun"),
    ("how would you describe the dog? the dog is happy to be here", " good"),
    ("a", " dull film that is bad and slow"),
]
TASK = PromptResponse("pairs", 64, data={}, prompt="{prompt}", response="{response}")


def encode_answer(tokenizer, prompt, answer, max_length, end):
    (encoded,) = causal.encode_answers(tokenizer, [prompt], [answer], max_length, end)
    return encoded


def encoded(tokenizer):
    return causal.encode_answers(tokenizer, *zip(*PAIRS, strict=True), 64, end=False)


def brute_force(model, example):
    """(log-likelihood, tokens) of the labelled tokens from one unpadded forward with all logits, token by token."""
    log_p = model(input_ids=torch.tensor([example["input_ids"]])).logits[0].double().log_softmax(-1)
    at = [i for i, label in enumerate(example["labels"]) if label != -100]
    return sum(log_p[i - 1, example["input_ids"][i]] for i in at), len(at)


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("keep_logits", [True, False])
def test_the_models_own_loss_and_gradient_equal_the_unpadded_ones(build, keep_logits):
    tokenizer, model = bpe(), build(dtype=torch.float64)
    examples = encoded(tokenizer)
    batch = causal.collate_left(examples, tokenizer.pad_token_id, keep_logits)
    assert ("logits_to_keep" in batch) == keep_logits
    # transformers computes the loss in float32 whatever the model's type is.
    loss = model(**batch).loss
    parts = [brute_force(model, example) for example in examples]
    expected = -sum(part for part, _ in parts) / sum(count for _, count in parts)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    names = [name for name, _ in model.named_parameters()]
    got = torch.autograd.grad(loss, list(model.parameters()))
    reference = torch.autograd.grad(expected, list(model.parameters()))
    for name, a, b in zip(names, got, reference, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7), name


def test_logits_are_kept_for_the_longest_answer_alone():
    tokenizer = bpe()
    examples = encoded(tokenizer)
    batch = causal.collate_left(examples, tokenizer.pad_token_id, keep_logits=True)
    longest = max(sum(label != -100 for label in example["labels"]) for example in examples)
    assert batch["logits_to_keep"] == longest + 1 == batch["labels"].shape[1]
    assert batch["logits_to_keep"] < batch["input_ids"].shape[1]
    assert (batch["labels"][:, 0] == -100).all()
    pads = batch["attention_mask"] == 0
    assert pads.any() and (batch["input_ids"][pads] == tokenizer.pad_token_id).all()
    for row, example in zip(batch["position_ids"], examples, strict=True):
        assert row[-len(example["input_ids"]) :].tolist() == list(range(len(example["input_ids"])))


def test_scores_equal_brute_force_at_any_batch_size_in_the_order_given():
    tokenizer, model = bpe(), tiny_llama()
    examples = encoded(tokenizer)
    expected = [brute_force(model, example) for example in examples]
    for batch_size in (1, 2, 3):
        scores = TASK.score_answers(model, examples, tokenizer, batch_size)
        assert [score.tokens for score in scores] == [count for _, count in expected]
        for score, (value, _) in zip(scores, expected, strict=True):
            assert score.log_likelihood == pytest.approx(value.item(), abs=1e-4)


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_answers_to_one_prompt_share_it_and_score_as_if_alone(build):
    tokenizer, model = bpe(), build()
    answers = [" sleep in the sun", " good", " dull film that is bad", " a"]
    pairs = [(prompt, answer) for prompt, _ in PAIRS for answer in answers]
    examples = [encode_answer(tokenizer, *pair, 64, end=False) for pair in pairs]
    # A prompt that is cut by its answer's length is another prompt, and one answer alone is still scored.
    examples += [encode_answer(tokenizer, PAIRS[1][0], answer, 8, end=False) for answer in answers]
    expected = [brute_force(model, example) for example in examples]
    seen = []
    hook = model.get_input_embeddings().register_forward_hook(lambda _, args, __: seen.append(args[0].numel()))
    for batch_size in (1, 4, 8, 100):
        scores = TASK.score_answers(model, examples, tokenizer, batch_size)
        assert [score.tokens for score in scores] == [count for _, count in expected]
        for score, (value, _) in zip(scores, expected, strict=True):
            assert score.log_likelihood == pytest.approx(value.item(), abs=1e-4)
    # What it is for: at one prompt a batch, fewer tokens go through the model than the answers have with their prompts.
    seen.clear()
    TASK.score_answers(model, examples, tokenizer, 1)
    hook.remove()
    assert sum(seen) < sum(len(example["input_ids"]) for example in examples)


def test_greedy_matches_count_the_likeliest_tokens():
    tokenizer, model = bpe(), tiny_llama()
    prompt = tokenizer("the cat")["input_ids"]
    ids = list(prompt)
    for _ in range(3):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    wrong = (ids[-1] + 1) % 100
    for last, matches in ((ids[-1], 3), (wrong, 2)):
        row = [*ids[:-1], last]
        example = {"input_ids": row, "labels": [-100] * len(prompt) + row[len(prompt) :]}
        assert TASK.score_answers(model, [example], tokenizer, 1)[0].greedy_matches == matches


def test_evaluation_restores_every_modules_mode_and_leaves_no_gradient():
    tokenizer, model = bpe(), tiny_llama()
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    TASK.score_answers(model, encoded(tokenizer), tokenizer, 2)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_no_token_spans_the_boundary():
    tokenizer = bpe()
    prompt, answer = "the", " cat"
    joint = tokenizer(prompt + answer, return_offsets_mapping=True)["offset_mapping"]
    # Tokenised together, one token holds characters of both.
    assert any(start < len(prompt) < stop for start, stop in joint)
    example = encode_answer(tokenizer, prompt, answer, 64, end=False)
    inside = [i for i, label in zip(example["input_ids"], example["labels"], strict=True) if label == -100]
    after = [label for label in example["labels"] if label != -100]
    assert tokenizer.decode(inside) == prompt and tokenizer.decode(after) == answer
    assert example["input_ids"] == inside + after


def test_bos_comes_first_and_eos_last_and_only_where_wanted():
    tokenizer = bpe(bos=True)
    plain = encode_answer(tokenizer, "the cat", " sleep", 64, end=False)
    closed = encode_answer(tokenizer, "the cat", " sleep", 64, end=True)
    assert plain["input_ids"].count(tokenizer.bos_token_id) == 1 == plain["input_ids"][0]
    assert tokenizer.eos_token_id not in plain["input_ids"]
    assert closed["input_ids"] == [*plain["input_ids"], tokenizer.eos_token_id]
    assert closed["labels"][-1] == tokenizer.eos_token_id


def test_a_tokenizer_that_prepends_a_space_gets_no_second_one():
    tokenizer = bpe(metaspace=True)
    example = encode_answer(tokenizer, "the cat", " sun", 64, end=False)
    answer = [label for label in example["labels"] if label != -100]
    text = "".join(tokenizer.convert_ids_to_tokens(answer))
    assert text == "\u2581sun"


@pytest.mark.parametrize("bos", [True, False])
def test_too_long_input_loses_the_prompts_start_then_the_answers_end(bos):
    tokenizer = bpe(bos=bos)
    whole = encode_answer(tokenizer, PAIRS[1][0], PAIRS[0][1], 64, end=False)
    answer = [label for label in whole["labels"] if label != -100]
    size = len(answer) + 4
    cut = encode_answer(tokenizer, PAIRS[1][0], PAIRS[0][1], size, end=False)
    assert len(cut["input_ids"]) == size and cut["labels"][4:] == answer
    kept = 3 if bos else 4
    assert cut["input_ids"][4 - kept : 4] == whole["input_ids"][-len(answer) - kept : -len(answer)]
    assert (cut["input_ids"][0] == tokenizer.bos_token_id) == bos
    tiny = encode_answer(tokenizer, PAIRS[1][0], PAIRS[0][1], 3, end=False)
    assert tiny["labels"] == [-100, *answer[:2]]


def test_an_empty_prompt_still_has_a_token_to_predict_from():
    tokenizer = bpe()
    example = encode_answer(tokenizer, "", "good", 16, end=False)
    assert example["input_ids"][0] == tokenizer.bos_token_id and example["labels"][0] == -100


class NoKeep(torch.nn.Module):
    def forward(self, input_ids, attention_mask, labels=None):
        return None


def test_full_labels_where_the_forward_takes_no_logits_to_keep():
    tokenizer = bpe()
    wrapped = get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert causal.takes_logits_to_keep(wrapped)
    assert not causal.takes_logits_to_keep(NoKeep())
    batch = TASK.collator(tokenizer, NoKeep())(encoded(tokenizer))
    assert "logits_to_keep" not in batch and batch["labels"].shape == batch["input_ids"].shape
    assert "logits_to_keep" in TASK.collator(tokenizer, wrapped)(encoded(tokenizer))
