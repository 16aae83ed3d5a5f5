"""Tokenised examples kept in the store: what is read back is what was encoded, and only that is found."""

import json
import logging
import subprocess
import sys

import pytest
from reading_tools import classification, questions, responses
from task_tools import CORPUS, bpe, words
from test_capacity import plain, run
from tiny import tiny_llama
from tiny_tokenizer import byte_level
from tokenizers import Regex, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, ByT5Tokenizer

from rowsft.store import token_cache
from rowsft.store.token_cache import TokenCache
from rowsft.tasks import token_caching
from rowsft.tasks.prompt_response import PromptResponse
from rowsft.tasks.token_caching import FEWEST, kept, key_of

KNOWN = " ".join(CORPUS).split()


def pairs(count=FEWEST):
    said = [" ".join(KNOWN[(i * k) % len(KNOWN)] for k in range(1, 2 + i % 7)) for i in range(count + 1)]
    return [{"id": f"row-{i}", "prompt": said[i], "response": said[i + 1]} for i in range(count)]


def cases():
    rows = pairs()
    texts = [{"text": row["prompt"], "pair": row["response"], "label": i % 3} for i, row in enumerate(rows)]
    numbers = [{**row, "label": i / 7} for i, row in enumerate(texts)]
    options = [{**row, "options": [row["response"], "a cat"], "label": i % 2} for i, row in enumerate(rows)]
    return {
        "responses": (responses("none.jsonl"), bpe(bos=True), rows),
        "classes": (classification("none.jsonl"), words(), texts),
        "numbers": (classification("none.jsonl"), words(), numbers),
        "options": (questions("none.jsonl"), byte_level(CORPUS), options),
    }


def never():
    raise AssertionError("encoded again")


def exact(rows):
    """Rows with the type of every value."""
    return [
        [(key, type(value), [*map(type, value)] if type(value) is list else None, value) for key, value in row.items()]
        for row in rows
    ]


@pytest.mark.parametrize("kind", ["responses", "classes", "numbers", "options"])
def test_what_is_read_back_is_what_was_encoded(tmp_path, kind):
    task, tokenizer, rows = cases()[kind]
    plainly = task.encode(rows, tokenizer)
    cache = TokenCache(tmp_path)
    assert kept(cache, task, tokenizer, rows, "encode", lambda: task.encode(rows, tokenizer)) == plainly
    assert exact(kept(TokenCache(tmp_path), task, tokenizer, rows, "encode", never)) == exact(plainly)


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "folder"])
def test_a_damaged_file_is_made_again(tmp_path, caplog, damage):
    task, tokenizer, rows = cases()["responses"]
    plainly, cache = task.encode(rows, tokenizer), TokenCache(tmp_path)

    def encoded():
        return kept(cache, task, tokenizer, rows, "encode", lambda: task.encode(rows, tokenizer))

    encoded()
    (file,) = cache.folder.iterdir()
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.unlink()
    if damage == "folder":
        file.mkdir()
    else:
        file.write_bytes({"flipped": content, "cut": content[:-9], "empty": b""}[damage])
    with caplog.at_level(logging.WARNING):
        assert encoded() == plainly
    assert "tokenised again" in caplog.text
    if damage != "folder":
        assert kept(cache, task, tokenizer, rows, "encode", never) == plainly


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path, caplog):
    task, tokenizer, rows = cases()["responses"]
    (tmp_path / "tokenised").write_text("no folder")
    found = kept(TokenCache(tmp_path), task, tokenizer, rows, "encode", lambda: task.encode(rows, tokenizer))
    assert found == task.encode(rows, tokenizer) and "not kept" in caplog.text


def changed(tokenizer, change):
    change(tokenizer)
    return tokenizer


def test_whatever_changes_the_tokens_changes_the_key(tmp_path):
    task, _, rows = cases()["responses"]

    def key(tokenizer, task=task, rows=rows, what="encode"):
        return json.dumps(key_of(task, tokenizer, rows, what))

    def backend(name, part):
        return lambda tokenizer: setattr(tokenizer.backend_tokenizer, name, part)

    others = [
        key(bpe(bos=True)),
        key(bpe(metaspace=True)),
        key(bpe(vocabulary=99)),
        key(changed(bpe(), lambda tokenizer: tokenizer.add_tokens(["cat"]))),
        key(changed(bpe(), lambda tokenizer: setattr(tokenizer, "eos_token", "<pad>"))),
        key(changed(bpe(), lambda tokenizer: setattr(tokenizer, "bos_token", None))),
        key(changed(bpe(), lambda tokenizer: setattr(tokenizer, "split_special_tokens", True))),
        key(changed(bpe(), backend("normalizer", normalizers.Lowercase()))),
        key(changed(bpe(), backend("pre_tokenizer", pre_tokenizers.Split(Regex("t"), "removed")))),
        key(bpe(), task=PromptResponse("own", 31, {}, "{prompt}", "{response}")),
        key(bpe(), rows=rows[1:] + rows[:1]),
        key(bpe(), rows=[{**rows[0], "response": "x"}, *rows[1:]]),
        key(bpe(), what="too_long"),
        key(bpe(), task=cases()["options"][0]),
    ]
    assert len({key(bpe()), *others}) == 1 + len(others) and "null" not in [key(bpe()), *others]
    # What changes no token does not: where the tokenizer lies, and what it was last asked to do.
    used = bpe()
    used(["the cat"] * 2, truncation=True, max_length=3, padding="max_length")
    assert key(used) == key(bpe())
    saved = []
    for name in ("here", "there"):
        bpe().save_pretrained(tmp_path / name)
        saved.append(key(AutoTokenizer.from_pretrained(tmp_path / name)))
    assert saved[0] == saved[1]


def test_a_change_of_the_code_changes_the_key(monkeypatch):
    task, tokenizer, rows = cases()["responses"]
    before = key_of(task, tokenizer, rows, "encode")
    monkeypatch.setattr(token_caching, "_code", lambda: "other")
    assert key_of(task, tokenizer, rows, "encode") != before


class OfTheUsers(PromptResponse):
    """Whose code may change without a word."""


def with_dropout():
    tokenizer = bpe()
    trained = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in trained["merges"]]
    tokenizer.backend_tokenizer.model = models.BPE(trained["vocab"], merges, dropout=0.5, unk_token="<unk>")
    return tokenizer


def test_what_the_key_cannot_tell_is_not_kept():
    task, tokenizer, rows = cases()["responses"]
    assert key_of(task, tokenizer, rows, "encode") is not None
    assert key_of(task, tokenizer, rows[1:], "encode") is None
    assert key_of(OfTheUsers("x", 32, {}, "{a}", "{b}"), tokenizer, rows, "encode") is None
    assert key_of(task, with_dropout(), rows, "encode") is None
    assert key_of(task, ByT5Tokenizer(), rows, "encode") is None
    assert key_of(task, tokenizer, [{**row, "picture": object()} for row in rows], "encode") is None


@pytest.mark.parametrize("value", [True, None, "text", [1.5], [[1]], [None], 2**31, [2**40], {"a": 1}])
def test_other_values_are_not_kept(tmp_path, value):
    cache = TokenCache(tmp_path)
    cache.put({"a": 1}, [{"x": value}])
    assert cache.get({"a": 1}) is None
    cache.put({"a": 1}, [{"x": 1}, {"y": 1}])
    assert cache.get({"a": 1}) is None


def test_the_least_recently_used_go_first(tmp_path, monkeypatch):
    cache = TokenCache(tmp_path)
    rows = [{"x": list(range(1000))}]
    cache.put({"n": 0}, rows)
    (file,) = cache.folder.iterdir()
    monkeypatch.setattr(token_cache, "LARGEST_BYTES", int(4.5 * file.stat().st_size))
    for n in range(1, 6):
        cache.put({"n": n}, rows)
        assert cache.get({"n": 0}) == rows
    assert [n for n in range(6) if cache.get({"n": n}) is not None] == [0, 3, 4, 5]


WORKER = """
import sys
from rowsft.store.token_cache import TokenCache
cache, rows = TokenCache(sys.argv[1]), [{"x": [n] * 5000} for n in range(100)]
for turn in range(40):
    found = cache.get({"k": turn % 2})
    assert found in (None, rows), "another's, or a part"
    cache.put({"k": turn % 2}, rows)
print("same")
"""


def test_two_processes_at_once(tmp_path):
    both = [subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path)], stdout=-1, stderr=-1) for _ in range(2)]
    said = [process.communicate(timeout=300) for process in both]
    assert said == [(b"same\n", b"")] * 2


def test_runs_of_a_store_tokenise_once_and_end_as_without_it(tmp_path):
    tokenizer = plain(pad_token="<pad>", eos_token="</s>")
    rows = [{"prompt": f"w{n % 60} w{n % 7}", "response": f"w{n % 5} " * (1 + n % 3)} for n in range(FEWEST)]
    split = {"train": rows, "validation": rows[:8], "test": rows[8:16]}

    def predictions(store, seed):
        run(tmp_path, tiny_llama(), tokenizer, split, "prompt_response", f"store={store}", f"seed={seed}")
        return sorted(file.read_text() for file in store.glob("*/attempt-*/predictions*"))

    first, second = tmp_path / "first", tmp_path / "second"
    predictions(first, 1)
    files = {file: file.stat().st_ino for file in (first / "tokenised").iterdir()}
    assert len(files) == 2
    together = predictions(first, 2)
    assert {file: file.stat().st_ino for file in (first / "tokenised").iterdir()} == files
    assert predictions(second, 2)[0] in together and len(together) == 2
