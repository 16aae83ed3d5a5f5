"""Log-likelihoods of answers: the suite's own are the harness's on the same prompts and answers, to rounding."""

import json
from pathlib import Path

import pytest
from local_tasks import write_task
from shared_data import shared_data
from tiny import tiny_gpt2, tiny_llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from rowsft.tasks.causal import encode_answers
from rowsft.tasks.prompt_response import PromptResponse

lm_eval = pytest.importorskip("lm_eval", reason="needs pip install '.[eval]': make eval-test")
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

# The form of the commonsense tasks as the LLM-Adapters papers have them.
QUESTIONS = {
    "boolq": (["true", "false"], "Please answer the following question with true or false, question: {}?"),
    "piqa": (["solution1", "solution2"], "Please choose the correct solution to the question: {}\n\nSolution1: x y"),
    "openbookqa": ([f"answer{n}" for n in range(1, 5)], "Please choose the correct answer to the question: {}"),
}
ITEMS = 24


def rows_of(name: str, own: bool) -> list[dict]:
    """Items of the task: real ones, or made in the same form."""
    if not own:
        (path,) = shared_data(f"{name}/test.json")
        rows = json.loads(path.read_text())[:ITEMS]
        return [{key: row[key] for key in ("instruction", "answer")} for row in rows]
    choices, form = QUESTIONS[name]
    asked = [f"{'a long way ' * (n % 5)}does thing {n} – naïve or not – hold" for n in range(ITEMS)]
    return [{"instruction": form.format(text), "answer": choices[n % len(choices)]} for n, text in enumerate(asked)]


def tokenizer_of(rows: list[dict], bos: bool) -> PreTrainedTokenizerFast:
    """A BPE of bytes within words, as GPT-2, Llama-3 and Qwen have it, trained on the items."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special, alphabet = ["<s>", "</s>", "<pad>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([row["instruction"] for row in rows], trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def harness_scores(folder: Path, model, tokenizer, rows: list[dict], choices: list[str], text: str) -> list[tuple]:
    """(context, continuation, log-likelihood, whether greedy) of every answer, as the harness has them."""
    write_task(folder, "items", rows, choices, text)
    task = folder / "items.yaml"
    task.write_text(task.read_text().replace("doc_to_target: label", 'doc_to_target: "{{answer}}"'))
    found = lm_eval.simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4),
        tasks=["items"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
    )
    samples = found["samples"]["items"]
    assert len(samples) == len(rows)
    return [
        (context, continuation, *response[0])
        for sample in samples
        for (context, continuation), response in zip(sample["arguments"], sample["resps"], strict=True)
    ]


def own_scores(model, tokenizer, pairs: list[tuple[str, str]]):
    task = PromptResponse("any", 1024, {"path": "none.jsonl"}, "{a}", "{b}")
    encoded = encode_answers(tokenizer, *zip(*pairs, strict=True), 1024, end=False)
    return task.score_answers(model, encoded, tokenizer, 4)


MODELS = {
    "llama": lambda: tiny_llama(vocab_size=400, max_position_embeddings=1024),
    "gpt2": lambda: tiny_gpt2(vocab_size=400, n_positions=1024),
}


@pytest.mark.parametrize("name", QUESTIONS)
@pytest.mark.parametrize("own", [True, False], ids=["made", "real"])
@pytest.mark.parametrize(("family", "bos"), [("llama", True), ("llama", False), ("gpt2", False)])
def test_scores_are_the_harness_s_to_rounding(name, own, family, bos, tmp_path):
    rows = rows_of(name, own)
    tokenizer, model = tokenizer_of(rows, bos), MODELS[family]()
    text = "{{instruction}}\nthe correct answer is"
    theirs = harness_scores(tmp_path, model, tokenizer, rows, QUESTIONS[name][0], text)
    ours = own_scores(model, tokenizer, [(context, answer) for context, answer, *_ in theirs])
    assert len(ours) == ITEMS * len(QUESTIONS[name][0])
    for (_, _, expected, greedy), score in zip(theirs, ours, strict=True):
        assert score.log_likelihood == pytest.approx(expected, rel=1e-5, abs=1e-5)
        assert (score.greedy_matches == score.tokens) == greedy


def test_a_blank_at_the_end_of_a_prompt_is_the_answer_s_for_the_harness(tmp_path):
    """docs/evaluation.md: the harness moves it, the suite's own tasks do not; moved, the scores are equal."""
    rows = rows_of("boolq", own=True)
    tokenizer, model = tokenizer_of(rows, bos=False), MODELS["llama"]()
    theirs = harness_scores(tmp_path, model, tokenizer, rows, ["true", "false"], "{{instruction}} Answer: ")
    # target_delimiter is a blank, too.
    assert all(context.endswith(": ") and answer.startswith(" ") for context, answer, *_ in theirs)
    as_given = own_scores(model, tokenizer, [(context, answer) for context, answer, *_ in theirs])
    moved = own_scores(model, tokenizer, [(context.rstrip(), f" {answer}") for context, answer, *_ in theirs])
    for (_, _, expected, _), apart, same in zip(theirs, as_given, moved, strict=True):
        assert same.log_likelihood == pytest.approx(expected, rel=1e-5)
        assert apart.tokens < same.tokens and abs(apart.log_likelihood - expected) > 0.1


def test_tokens_that_span_prompt_and_answer_make_a_difference():
    """docs/evaluation.md: the harness cuts the tokens of the whole where those of the prompt end; the suite tokenises
    the two apart, so that the same prompt is read before every answer."""
    crossing = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=["<s>", "</s>", "<pad>"], show_progress=False)
    # Without a pre-tokenizer a token may hold the end of one word and the start of the next.
    crossing.train_from_iterator(["what will the cat want to do", "the cat will sleep", "the cat want"] * 5, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=crossing, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    model = tiny_llama()
    context, answers = "what will the cat", [" want", " sleep"]
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4)
    pairs = [harness._encode_pair(context, answer) for answer in answers]
    apart = [tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in answers]
    whole = [tokenizer(context + answer)["input_ids"] for answer in answers]
    spans = [list(prompt) + list(rest) != list(prompt) + own for (prompt, rest), own in zip(pairs, apart, strict=True)]
    assert any(spans), "no token spans the boundary: the case is not the one that is meant"
    assert any(prompt != ids[: len(prompt)] for (prompt, _), ids in zip(pairs, whole, strict=True))
