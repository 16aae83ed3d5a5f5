"""What evaluation tokenises is kept in the store: a second run tokenises nothing, and nothing half written is read."""

import subprocess
import sys
import time

import pytest
from reading_tools import questions
from task_tools import bpe, words
from test_capacity import plain, run
from test_token_cache import pairs
from tiny import tiny_bert, tiny_llama
from transformers import PreTrainedTokenizerBase

from rowsft.store.token_cache import TokenCache
from rowsft.tasks import token_caching
from rowsft.tasks.generated_answer import GeneratedAnswer
from rowsft.tasks.language_modelling import LanguageModelling
from rowsft.tasks.mix import Mix
from rowsft.tasks.prompt_response import PromptResponse
from rowsft.tasks.sentiment import Sentiment

TEMPLATES = {"prompt": "{prompt}", "response": "{response}"}
DATA = {"path": "none.jsonl", "validation": 0.2, "test": 0.2}


def quiz(**changes):
    return questions("none.jsonl", **{"prompt": "{prompt}", "pmi": "the", **changes})


def evaluations():
    """Kind -> how its task is made with a max_length, rows of a split, what evaluates them."""
    rows = pairs(12)
    options = [{**row, "options": [row["response"], "a cat", "sun"], "label": i % 3} for i, row in enumerate(rows)]
    return {
        "classes": (
            lambda most: Sentiment("own", most, 1, 1),
            [{"id": row["id"], "text": row["prompt"], "label": i % 2} for i, row in enumerate(rows)],
            (tiny_bert(num_labels=2), words()),
        ),
        "responses": (lambda most: PromptResponse("own", most, DATA, **TEMPLATES), rows, (tiny_llama(), bpe(bos=True))),
        "written": (
            lambda most: GeneratedAnswer("own", most, DATA, **TEMPLATES, max_new_tokens=3),
            [{**row, "number": "1"} for row in rows],
            (tiny_llama(), bpe(bos=True)),
        ),
        "text": (
            lambda most: LanguageModelling("own", most, DATA),
            [{"id": row["id"], "text": f"{row['prompt']}\n"} for row in rows],
            (tiny_llama(), bpe(bos=True)),
        ),
        "options": (lambda most: quiz(max_length=most), options, (tiny_llama(), bpe())),
        "mix": (
            lambda most: Mix("mix", most, {"quiz": quiz(max_length=most)}),
            [{**row, "id": f"quiz/{row['id']}", "task": "quiz"} for row in options],
            (tiny_llama(), bpe()),
        ),
    }


def texts_given(monkeypatch):
    """All texts that a tokenizer is given in lists from here on."""
    given = []
    really = PreTrainedTokenizerBase.__call__

    def counted(self, text, *rest, **options):
        given.extend(text if isinstance(text, list | tuple) else [])
        return really(self, text, *rest, **options)

    monkeypatch.setattr(PreTrainedTokenizerBase, "__call__", counted)
    return given


@pytest.mark.parametrize("kind", ["classes", "responses", "written", "text", "options", "mix"])
def test_what_is_evaluated_is_tokenised_once(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(token_caching, "FEWEST", 5)
    given = texts_given(monkeypatch)
    make, rows, (model, tokenizer) = evaluations()[kind]

    def result(most=48, rows=rows, tokenizer=tokenizer, store=tmp_path):
        given.clear()
        task = make(most)
        if store is not None:
            task.keep_tokens(TokenCache(store))
        return task.evaluate(model, rows, tokenizer, 4), len(given)

    plain, count = result(store=None)
    assert count > 0 and result() == (plain, count)
    assert result() == (plain, 0)
    # What changes the tokens is another entry; what was there before stays.
    other = words() if kind == "classes" else bpe(bos=kind in ("options", "mix"))
    other.add_tokens(["zzz"])
    changed = [{**rows[0], "prompt": "a dog", "text": "a dog"}, *rows[1:]]
    for change in ({"most": 40}, {"tokenizer": other}, {"rows": changed}, {"rows": rows[::-1]}):
        assert result(**change)[1] > 0, change
        assert result(**change)[1] == 0, change
    assert result() == (plain, 0)


def test_a_second_run_tokenises_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(token_caching, "FEWEST", 5)
    given = texts_given(monkeypatch)
    tokenizer = plain(pad_token="<pad>", eos_token="</s>")
    rows = [{"prompt": f"w{n % 60} w{n % 7}", "response": f"w{n % 5}"} for n in range(30)]
    split = {"train": rows, "validation": rows[:10], "test": rows[10:20]}
    known = {text for row in rows for text in (row["prompt"], row["response"])}
    counts = []
    for seed in (1, 2):
        given.clear()
        run(tmp_path, tiny_llama(), tokenizer, split, "prompt_response", f"store={tmp_path / 'runs'}", f"seed={seed}")
        counts.append(sum(text in known for text in given))
    assert counts[0] > 0 and counts[1] == 0


ENDLESS = """
import sys
from rowsft.store.token_cache import TokenCache
cache = TokenCache(sys.argv[1])
for number in range(10**6):
    cache.put({"n": number}, [{"x": [number] * 1_000_000}])
"""


def test_a_writer_that_is_killed_leaves_no_half_of_a_file(tmp_path):
    cache = TokenCache(tmp_path)
    writer = subprocess.Popen([sys.executable, "-c", ENDLESS, str(tmp_path)])
    deadline = time.monotonic() + 300
    try:
        # In the midst of the second file or a later one: a part of it is there.
        while not (list(cache.folder.glob("*.tokens")) and any(map(_size, cache.folder.glob(".*.tmp")))):
            assert time.monotonic() < deadline and writer.poll() is None
            time.sleep(0.001)
    finally:
        writer.kill()
        writer.wait()
    whole = 0
    while (found := cache.get({"n": whole})) is not None:
        assert found == [{"x": [whole] * 1_000_000}]
        whole += 1
    assert whole == len(list(cache.folder.glob("*.tokens"))) > 0
    cache.put({"n": whole}, [{"x": [1]}])
    assert cache.get({"n": whole}) == [{"x": [1]}]
    assert not list(cache.folder.glob(".*.tmp")), "what it left is removed by the next writer"


def _size(path):
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
