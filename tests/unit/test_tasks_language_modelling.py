"""Windows over running text: every token once, its stated context, sums of pieces; against plain float64 forwards."""

import math
import random

import pytest
import torch
from datasets import Dataset
from refusals import refusal
from task_tools import CORPUS, bpe
from tiny import tiny_gpt2, tiny_llama

from rowsft.batch import IGNORED
from rowsft.config.compose import compose
from rowsft.config.settings import trainer_settings
from rowsft.plan import plan
from rowsft.plan.lengths import of_data
from rowsft.tasks import windows
from rowsft.tasks.language_modelling import LanguageModelling
from rowsft.tasks.windows import Start


def sentences(count, seed=0):
    draw = random.Random(seed)
    words = " ".join(CORPUS).replace("?", "").split()
    return [" ".join(draw.choice(words) for _ in range(draw.randint(3, 12))) for _ in range(count)]


def text_file(folder, name, lines):
    path = folder / name
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def task(data, **changes):
    data = {"path": str(data)} if not isinstance(data, dict) else data
    settings = {"max_length": 24, "documents": "rows", **changes}
    return LanguageModelling("own", data={"validation": 0.2, "test": 0.3, **data}, **settings)


BOS = 999


@pytest.mark.parametrize("every", [True, False])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("tokens", [2, 7, 8, 9, 15, 16, 17, 100])
@pytest.mark.parametrize("stride", [1, 3, 7, None])
def test_every_token_is_predicted_once_and_from_the_stated_context(every, first, tokens, stride):
    if every and not first:
        return
    start = Start((BOS,) if every else (), (BOS,) if first else ())
    length, stream = 8, list(range(tokens))
    cut = windows.cut(tokens, length, stride, start)
    predicted = []
    for window in cut:
        example = windows.encoded(window, stream, start)
        ids, labels = example["input_ids"], example["labels"]
        assert len(ids) == len(labels) <= length and labels[0] == IGNORED
        own = [label for label in labels if label != IGNORED]
        assert labels == [IGNORED] * (len(labels) - len(own)) + own and ids[-len(own) :] == own
        # What is read is the text itself, without a gap, behind the start.
        read = [token for token in ids if token != BOS]
        assert read == list(range(read[0], read[0] + len(read)))
        assert (ids[0] == BOS) == (every or (first and window is cut[0]))
        if window is not cut[0]:
            least = length - every - (stride or length)
            assert len(read) - len(own) >= max(least, 0 if every else 1)
            assert len(ids) == min(length, len(read) + every)
        predicted += own
    assert predicted == stream[0 if first else 1 :]
    # Training's windows waste nothing but the one token of context that a window without a start needs.
    if stride is None:
        assert len(cut) == math.ceil((tokens - (not first)) / (length - 1)) if tokens > 1 else True


def brute_force(model, tokenizer, stream, length, stride, bos):
    """Log-probability and greedy match of every token, each from a forward of its own, in float64."""
    room = length - bool(bos)
    front = [tokenizer.bos_token_id]
    log_p, hits = [], []
    first_end = min(len(stream), length - 1)
    for at, token in enumerate(stream):
        if at < first_end:
            ids = front + stream[:at]
        else:
            end = min(len(stream), first_end + stride * ((at - first_end) // stride + 1))
            ids = (front if bos else []) + stream[end - room : at]
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
        log_p.append(logits.log_softmax(-1)[token].item())
        hits.append(logits.argmax().item() == token)
    return log_p, hits


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("stride", [5, 23])
def test_scores_equal_brute_force_whatever_the_batch(tmp_path, bos, build, stride):
    model, tokenizer = build(dtype=torch.float64), bpe(bos=bos)
    built = task(text_file(tmp_path, "a.txt", sentences(20)), stride=stride)
    examples = built.splits()["test"]
    ids = [tokenizer(example["text"], add_special_tokens=False)["input_ids"] for example in examples]
    stream = [token for each in ids for token in each]
    assert len(stream) > 3 * 24
    with torch.no_grad():
        log_p, hits = brute_force(model, tokenizer, stream, 24, min(stride, 23 if bos else 23), bos)
    results = [built.evaluate(model, examples, tokenizer, batch_size=size) for size in (1, 3, 64)]
    for result in results:
        metrics, at = result.metrics, 0
        for row, own, example in zip(result.predictions, ids, examples, strict=True):
            assert row["id"] == example["id"] and row["tokens"] == len(own)
            # The model computes in float64, log-probabilities are taken in float32.
            assert -row["negative_log_likelihood"] == pytest.approx(sum(log_p[at : at + len(own)]), rel=1e-5)
            assert row["greedy_matches"] == sum(hits[at : at + len(own)])
            assert row["bytes"] == len(example["text"].encode()) and row["words"] == len(example["text"].split())
            at += len(own)
        nats = -sum(log_p)
        assert metrics["loss"] == pytest.approx(nats / len(stream), rel=1e-5)
        assert metrics["perplexity"] == pytest.approx(math.exp(nats / len(stream)), rel=1e-4)
        text = "".join(example["text"] for example in examples)
        assert metrics["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(text.encode()), rel=1e-5)
        assert metrics["word_perplexity"] == pytest.approx(math.exp(nats / len(text.split())), rel=1e-4)


def test_training_windows_join_the_texts_and_their_loss_is_that_of_all_tokens(tmp_path):
    model, tokenizer = tiny_llama(dtype=torch.float64), bpe(bos=True)
    built = task(text_file(tmp_path, "a.txt", sentences(20)))
    examples = built.splits()["train"]
    encoded = built.encode(examples, tokenizer)
    stream = tokenizer("".join(e["text"] for e in examples[:1]), add_special_tokens=False)["input_ids"]
    assert encoded[0]["input_ids"][: 1 + len(stream[:20])] == [tokenizer.bos_token_id, *stream[:20]]
    assert {len(each["input_ids"]) for each in encoded} == {24}
    batch = built.collator(tokenizer, model)(encoded)
    labelled = [[label for label in each["labels"] if label != IGNORED] for each in encoded]
    assert [token for own in labelled for token in own] == [
        token for e in examples for token in tokenizer(e["text"], add_special_tokens=False)["input_ids"]
    ]
    expected = 0.0
    for each, own in zip(encoded, labelled, strict=True):
        log_p = model(input_ids=torch.tensor([each["input_ids"]])).logits[0].double().log_softmax(-1)
        expected -= log_p[-len(own) - 1 : -1].gather(1, torch.tensor(own)[:, None]).sum().item()
    assert model(**batch).loss.item() == pytest.approx(expected / sum(map(len, labelled)), rel=1e-5)


ARTICLES = [" = Title = ", "", " A line of text . ", " Another one with more words in it . ", "", " = Next = ", ""]


def test_pieces_are_the_text_cut_at_line_ends_before_a_line_that_is_not_blank(tmp_path):
    lines = [*ARTICLES, *(f" Sentence number {i} of the running text . " for i in range(300)), "", "", " The end . "]
    path = text_file(tmp_path, "all.txt", lines)
    splits = task(path, documents="lines").splits()
    found = sorted((row for part in splits.values() for row in part), key=lambda row: int(row["id"][4:]))
    assert "".join(row["text"] for row in found) == "".join(f"{line}\n" for line in lines)
    assert [row["id"] for row in found] == [f"row-{i}" for i in range(len(found))]
    assert all(row["text"].split("\n")[0].strip() for row in found)
    assert all(2048 <= len(row["text"]) < 2048 + 60 for row in found[:-1])


def test_hub_rows_and_text_files_are_one_text(tmp_path):
    """The hub's rows end with a line break, and its blank lines are rows without any character."""
    lines = [*ARTICLES, *(f" Sentence number {i} of the running text . " for i in range(500))]
    (tmp_path / "hub").mkdir()
    (tmp_path / "txt").mkdir()
    for split, first in (("train", 0), ("validation", 100), ("test", 200)):
        own = [*lines[: len(ARTICLES)], *lines[len(ARTICLES) + first :]]
        rows = [{"text": f"{line}\n" if line else ""} for line in own]
        Dataset.from_list(rows).to_parquet(tmp_path / "hub" / f"{split}-00000-of-00001.parquet")
        (tmp_path / "txt" / f"{split}.txt").write_text("".join(f"{line or ' '}\r\n" for line in own), newline="")
    hub, txt = (task(tmp_path / kind, documents="lines") for kind in ("hub", "txt"))
    assert hub.splits() == txt.splits()
    assert [row["id"] for row in txt.splits()["test"]][:2] == ["test-0", "test-1"]


def test_each_line_of_a_text_file_can_be_a_document(tmp_path):
    path = text_file(tmp_path, "a.txt", ["one two", "", "three", *(f"more {i}" for i in range(7))])
    built = task(path, separator="\\n\\n")
    rows = {row["id"]: row["text"] for part in built.splits().values() for row in part}
    assert rows["row-0"] == "one two\n\n" and rows["row-1"] == "three\n\n" and len(rows) == 9
    assert built.about()["counts"]["blank_lines_skipped"] == 1


def test_a_tokenizer_that_puts_a_space_before_texts_puts_no_second_one(tmp_path):
    built, tokenizer = task(text_file(tmp_path, "a.txt", [f" the cat {i}" for i in range(9)])), bpe(metaspace=True)
    examples = built.splits()["train"]
    (window,) = built.encode(examples[:1], tokenizer)
    assert window["input_ids"][1:] == tokenizer(examples[0]["text"][1:], add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"stride": 24}, "task.stride=24: expected less than task.max_length=24 tokens, or null"),
        ({"stride": 0}, "task.stride=0: expected a whole number, at least 1 token"),
        ({"documents": "files"}, "task.documents=files: expected lines or rows"),
        ({"column": None}, "task.column=None: expected the name of a column"),
        ({"separator": 5}, "task.separator=5: expected text"),
    ],
)
def test_settings_are_refused_before_anything_is_read(changes, expected):
    assert expected in refusal(lambda: task("nowhere.txt", **changes))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "a.txt: the file is empty"),
        ("\n \n", "a.txt: no text; every line is blank"),
        ("one line\n", "1 rows with 1 different texts cannot be cut into 3 splits"),
    ],
)
def test_a_file_without_text_is_refused(tmp_path, content, expected):
    (tmp_path / "a.txt").write_text(content)
    assert expected in refusal(task(tmp_path / "a.txt", documents="lines").splits)


def test_another_column_of_a_text_file_is_refused(tmp_path):
    path = text_file(tmp_path, "a.txt", sentences(9))
    assert "no column body; it has text; a txt file has no others" in refusal(task(path, column="body").splits)


CAUSAL = ["model=smollm2_135m", "task=wikitext2", "method=lora", "trainer.batch_size=2", "task.max_length=64"]


def test_it_is_planned_by_its_windows_and_without_its_data_by_their_length(tmp_path):
    """Windows are all as long as can be, so that both plans are the same but for masks of padding."""
    config = compose(
        [*CAUSAL, f"task.data.path={text_file(tmp_path, 'a.txt', sentences(900))}", "trainer.batch_size=1"]
    )
    config.model.source = str(tmp_path / "model")
    bpe().save_pretrained(config.model.source)
    tiny_llama().config.save_pretrained(config.model.source)
    lengths = of_data(config)
    assert (lengths.source, lengths.tokens, lengths.alike) == ("data", 64, (True, True))
    assert lengths.evaluated[:2] == (64, 63)
    config = compose(CAUSAL)
    assert of_data(config).source == "assumed"
    found = plan(config, trainer_settings(config), lengths=of_data(config))
    assert found.peak_bytes > 2 * 64 * 49_152 * 4 and found.evaluation_bytes > 0
