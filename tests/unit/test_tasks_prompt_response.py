"""Prompts and responses from the user's own files."""

import json
import math

import pandas
import pytest
import torch
from task_tools import bpe
from tiny import tiny_llama

from rowsft.errors import UserError
from rowsft.tasks.prompt_response import PromptResponse


@pytest.fixture
def path(tmp_path):
    table = [{"ask": f"what is {i}?", "more": "a cat", "answer": "the sun " * (1 + i % 3)} for i in range(20)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, table)))
    return str(file)


def task(path, prompt="{ask} {more}\\n", response="{answer}", empty="refuse", **changes):
    data = {"path": path, "validation": 0.2, "test": 0.2, "empty": empty}
    return PromptResponse("own", max_length=48, data=data, prompt=prompt, response=response, **changes)


def test_templates_take_columns_and_the_command_lines_line_break(path):
    splits = task(path).splits()
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 12, "validation": 4, "test": 4}
    rows = {row["id"]: row for part in splits.values() for row in part}
    assert rows["row-4"] == {"id": "row-4", "prompt": "what is 4? a cat\n", "response": "the sun the sun "}


def test_loss_perplexity_and_accuracy_are_over_response_tokens(path):
    built, tokenizer, model = task(path), bpe(), tiny_llama()
    examples = built.splits()["test"]
    result = built.evaluate(model, examples, tokenizer, batch_size=3)
    total, tokens, hits = 0.0, 0, 0
    for row in examples:
        prompt = tokenizer(row["prompt"])["input_ids"]
        response = [*tokenizer(row["response"])["input_ids"], tokenizer.eos_token_id]
        logits = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        total += torch.nn.functional.cross_entropy(logits.double(), torch.tensor(response), reduction="sum").item()
        hits += (logits.argmax(-1) == torch.tensor(response)).sum().item()
        tokens += len(response)
    assert result.metrics["loss"] == pytest.approx(total / tokens, rel=1e-5)
    assert result.metrics["perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-5)
    assert result.metrics["token_accuracy"] == hits / tokens
    assert [row["id"] for row in result.predictions] == [row["id"] for row in examples]
    rows = result.predictions
    assert sum(row["tokens"] for row in rows) == tokens and sum(row["greedy_matches"] for row in rows) == hits
    assert sum(row["negative_log_likelihood"] for row in rows) == pytest.approx(total, rel=1e-5)
    size = sum(len(row["response"].encode()) for row in examples)
    assert sum(row["bytes"] for row in rows) == size
    assert result.metrics["bits_per_byte"] == pytest.approx(total / math.log(2) / size, rel=1e-5)


def test_bytes_are_those_of_the_response_that_is_scored(path):
    built, tokenizer = task(path), bpe()
    whole, cut = "sun \u00e9\u00e9", "the cat " * 40
    encoded = built.encode([{"prompt": "a", "response": whole}, {"prompt": "a", "response": cut}], tokenizer)
    assert encoded[0]["response_bytes"] == len(whole.encode()) == 8
    kept = [label for label in encoded[1]["labels"] if label != -100]
    assert len(kept) == 47 and encoded[1]["response_bytes"] == len(tokenizer.decode(kept)) < len(cut)


def test_empty_responses_have_no_bits_per_byte(path):
    built, tokenizer = task(path), bpe()
    result = built.evaluate(tiny_llama(), [{"id": "a", "prompt": "the", "response": ""}], tokenizer, batch_size=1)
    assert result.predictions[0]["bytes"] == 0 and result.metrics.keys() == {"loss", "perplexity", "token_accuracy"}


def test_the_response_ends_with_eos_and_alone_carries_labels(path):
    built, tokenizer = task(path), bpe()
    example = built.splits()["train"][0]
    (encoded,) = built.encode([example], tokenizer)
    kept = [label for label in encoded["labels"] if label != -100]
    assert kept[-1] == tokenizer.eos_token_id and tokenizer.decode(kept[:-1]) == example["response"]


def test_mistakes_are_named(path):
    with pytest.raises(UserError, match="pairs.jsonl: no column question; it has ask, more, answer"):
        task(path, prompt="{question}").splits()
    with pytest.raises(UserError, match="task.prompt='no field'"):
        task(path, prompt="no field")
    with pytest.raises(UserError, match="task.response='{answer'"):
        task(path, response="{answer")


WITH, WITHOUT = "{ask} | {more} >", "{ask} >"


def asked(folder, name, rows):
    """The file's prompts under two templates, in the order of its rows."""
    frame, file = pandas.DataFrame(rows), folder / name
    writers = {
        "csv": lambda: frame.to_csv(file, index=False),
        "tsv": lambda: frame.to_csv(file, index=False, sep="\t"),
        "jsonl": lambda: file.write_text("\n".join(map(json.dumps, rows))),
        "json": lambda: file.write_text(json.dumps(rows)),
        "parquet": lambda: frame.to_parquet(file),
    }
    writers[file.suffix[1:]]()
    splits = task(str(file), prompt=[WITH, WITHOUT]).splits()
    return [row["prompt"] for _, row in sorted((int(row["id"][4:]), row) for part in splits.values() for row in part)]


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_a_row_takes_the_first_template_that_it_can_fill(tmp_path, ending):
    rows = [{"ask": f"q{i}", "more": ["", "a cat", "  ", None][i % 4], "answer": "x"} for i in range(12)]
    expected = [f"q{i} | a cat >" if i % 4 == 1 else f"q{i} >" for i in range(12)]
    assert asked(tmp_path, f"rows.{ending}", rows) == expected


@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_rows_may_lack_a_column_that_the_last_template_does_without_the_first_row_too(tmp_path, ending):
    rows = [{"ask": f"q{i}", **({"more": "a cat"} if i == 7 else {}), "answer": "x"} for i in range(12)]
    assert asked(tmp_path, f"rows.{ending}", rows) == [f"q{i} | a cat >" if i == 7 else f"q{i} >" for i in range(12)]
    for row in rows:
        row.pop("more", None)
    with pytest.raises(UserError, match="no column more; it has ask, answer"):
        asked(tmp_path, f"rows.{ending}", rows)


@pytest.mark.parametrize("column", ["ask", "answer"])
def test_what_every_template_needs_must_not_be_empty(tmp_path, column):
    rows = [{"ask": "q", "more": "", "answer": "x"} for _ in range(9)]
    rows.append({**rows[0], column: ""})
    with pytest.raises(UserError, match=f"line 10: no value in column {column}; fill it or drop the row"):
        asked(tmp_path, "rows.jsonl", rows)


@pytest.mark.parametrize(
    ("given", "words"), [([], r"task.prompt=\[\]: expected a template"), (["{a}", "b"], r"prompt\[1\]=")]
)
def test_lists_of_templates_that_say_nothing_are_refused(given, words):
    with pytest.raises(UserError, match=words):
        task("never read", prompt=given)


def test_rows_without_a_response_are_left_out_and_counted_where_that_is_asked_for(tmp_path):
    rows = [{"ask": f"q{i}", "more": "m", "answer": "" if i in (3, 17) else "x"} for i in range(20)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    built = task(str(file), empty="drop")
    ids = {row["id"] for part in built.splits().values() for row in part}
    assert ids == {f"row-{i}" for i in range(20) if i not in (3, 17)}
    about = built.about()
    assert about["counts"]["rows_with_empty_cells_dropped"] == 2
    with pytest.raises(UserError, match="line 4: no value in column answer"):
        task(str(file)).splits()
