"""Prompts and answers encoded many at once: what each gives alone, by the tokenizer's plain calls."""

import sys

import pytest
from task_tools import CORPUS, bpe, words
from tiny_tokenizer import byte_level
from tokenizers import Regex, normalizers, processors
from transformers import ByT5Tokenizer

from rowsft.tasks import causal

TEXTS = ["", " ", "the cat", " the cat", "  a  ", "</s><s>a", "\n\nb", "the dog " * 30]
TEXTS += ["caf\u00e9 \u4e2d\u6587 e\u0301 \U0001f408"]


def closing():
    """BOS in front and EOS at the end, which a prompt must not have."""
    tokenizer = bpe(bos=True)
    ends = [("<s>", 1), ("</s>", 2)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", None, ends)
    return tokenizer


def without(tokenizer, *names):
    for name in names:
        setattr(tokenizer, name, None)
    return tokenizer


def knows_few_letters(metaspace):
    """Nothing stands for an "a"."""
    tokenizer = bpe(metaspace=metaspace)
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(Regex("[a-g]"), "")
    assert tokenizer.tokenize("a") == []
    return tokenizer


TOKENIZERS = {
    "plain": bpe,
    "bos": lambda: bpe(bos=True),
    "bos and eos": closing,
    "metaspace": lambda: bpe(metaspace=True),
    "metaspace and bos": lambda: bpe(metaspace=True, bos=True),
    "byte level": lambda: byte_level(CORPUS, 300),
    "no bos": lambda: without(bpe(), "bos_token"),
    "neither": lambda: without(bpe(), "bos_token", "eos_token"),
    "cls and sep": words,
    "few letters": lambda: knows_few_letters(False),
    "few letters, metaspace": lambda: knows_few_letters(True),
    "in python": ByT5Tokenizer,
}


def alone(tokenizer, prompt, answer, max_length, end):
    """input_ids, labels and response_bytes of one pair, each text by a call of its own."""
    size = len(answer.encode())
    told = tokenizer.tokenize("a") or tokenizer.tokenize(answer.removeprefix(" "))
    if told and told[0].startswith("\u2581"):
        answer = answer.removeprefix(" ")
    after = tokenizer(answer, add_special_tokens=False)["input_ids"]
    if len(after) >= max_length:
        size = min(size, len(tokenizer.decode(after[: max_length - 1], clean_up_tokenization_spaces=False).encode()))
    if end and tokenizer.eos_token_id is not None:
        after = [*after, tokenizer.eos_token_id]
    after = after[: max_length - 1]
    before = tokenizer(prompt)["input_ids"]
    while len(before) > 1 and before[-1] in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        before = before[:-1]
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    before, room = before or [start], max_length - len(after)
    if len(before) > room:
        first = before[:1] if before[0] == tokenizer.bos_token_id and room > 1 else []
        before = first + before[len(before) - room + len(first) :]
    return {"input_ids": before + after, "labels": [-100] * len(before) + after, "response_bytes": size}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_many_at_once_are_what_each_is_alone(kind):
    tokenizer = TOKENIZERS[kind]()
    pairs = [(prompt, answer) for prompt in TEXTS for answer in TEXTS]
    for max_length, end in ((2, True), (12, True), (12, False), (sys.maxsize, True)):
        found = causal.encode_answers(tokenizer, *zip(*pairs, strict=True), max_length, end)
        assert found == [alone(tokenizer, *pair, max_length, end) for pair in pairs]
        # No list of one example is a part of another's.
        lists = [one[key] for one in found for key in ("input_ids", "labels")]
        assert len({id(each) for each in lists}) == len(lists)


def test_thousands_keep_their_order():
    tokenizer = bpe(bos=True)
    prompts = [f"cat {'ab'[i % 2]} {'cdefghij'[i % 8]}" + "a" * (i % 401) for i in range(2500)]
    answers = [f" {'the sun'[: i % 7]}{'b' * (i % 1201)}" for i in range(2500)]
    found = causal.encode_answers(tokenizer, prompts, answers, 64, end=True)
    assert len(set(prompts)) > 1000 and len(set(answers)) > 1000
    for i in range(0, 2500, 13):
        assert found[i] == alone(tokenizer, prompts[i], answers[i], 64, True)
    assert causal.encode_answers(tokenizer, [], [], 64, end=True) == []


class Noting:
    """A tokenizer that notes every text that it is called with."""

    def __init__(self, tokenizer):
        self.tokenizer, self.texts = tokenizer, []

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def __call__(self, texts, **options):
        self.texts += [texts] if isinstance(texts, str) else texts
        return self.tokenizer(texts, **options)


def test_the_prompt_of_several_answers_is_tokenised_once():
    tokenizer = Noting(bpe())
    causal.encode_answers(tokenizer, ["the cat"] * 4 + ["the dog"] * 4, [" a", " b", " c", " good"] * 2, 64, end=False)
    assert sorted(tokenizer.texts) == [" a", " b", " c", " good", "the cat", "the dog"]


@pytest.mark.parametrize("room", [1, 4, 99])
def test_prompts_to_be_continued_are_those_before_an_answer(room):
    tokenizer = closing()
    for prompt, (ids, cut) in zip(TEXTS, causal.encode_prompts(tokenizer, TEXTS, room), strict=True):
        whole = alone(tokenizer, prompt, "", sys.maxsize, False)["input_ids"]
        assert cut == max(0, len(whole) - room) and len(ids) == len(whole) - cut
        assert ids == alone(tokenizer, prompt, "", room, False)["input_ids"]
