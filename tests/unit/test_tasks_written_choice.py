"""Multiple choice by what the model writes: against transformers' `generate`, one prompt after another."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from reading_tools import questions, write
from refusals import refusal
from report_factory import finish
from task_tools import bpe
from test_tasks_commonsense import instructions, made
from test_tasks_mix import mix, paths
from tiny import tiny_gpt2, tiny_llama
from tiny_tokenizer import byte_level

from rowsft.batch import IGNORED
from rowsft.config.compose import compose
from rowsft.report import predictions as pred
from rowsft.store import Store
from rowsft.store.identity import identity
from rowsft.tasks import Size
from rowsft.tasks.inspection import inspect

TOKENS = 12
CONVENTION = ["task.form=instruction", "task.max_new_tokens=8", "task.primary_metric=accuracy_generated"]
TEXTS = ["the cat is happy.", "how would you?", "a dull film that is bad", "the dog", "want to", "sleep in the sun"]


def one_by_one(model, tokenizer, prompt):
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    with torch.no_grad():
        out = model.eval().generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=TOKENS, pad_token_id=0
        )
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def first(text, options):
    """The regular expression of the papers' scripts, with whole words of any case."""
    either = "|".join(sorted(map(re.escape, options), key=len, reverse=True))
    found = re.findall(rf"(?<!\w)({either})(?!\w)", text, re.IGNORECASE)
    return [option.lower() for option in options].index(found[0].lower()) if found else -1


def written_about(make, tokenizer, folder):
    """A task whose questions have an option that the model writes as a word of its own, where it writes any."""
    rows = []
    for i, text in enumerate(TEXTS):
        words = re.findall(r"\w+", one_by_one(make(), tokenizer, text))
        options = ["zzz", words[-1] if words else "q q", "xyx"] if i % 3 else ["zzz", "yyy"]
        rows.append({"question": text, "options": options, "label": str(1 if i % 2 else 0)})
    built = questions(write(folder, rows, "jsonl"), prompt="{question}", max_length=40, max_new_tokens=TOKENS)
    return built, [example for part in built.splits().values() for example in part]


@pytest.mark.parametrize(("make", "batch_size"), [(tiny_llama, 1), (tiny_llama, 4), (tiny_gpt2, 16)])
@pytest.mark.parametrize("side", ["left", "right"])
def test_answers_are_those_of_generate_one_by_one(tmp_path, make, batch_size, side):
    tokenizer = bpe()
    tokenizer.padding_side = side
    built, examples = written_about(make, tokenizer, tmp_path)
    result = built.evaluate(make(), examples, tokenizer, batch_size=batch_size)
    texts = [one_by_one(make(), tokenizer, example["prompt"]) for example in examples]
    assert [row["generated"] for row in result.predictions] == texts
    expected = [first(text, example["options"]) for text, example in zip(texts, examples, strict=True)]
    assert [row["prediction_generated"] for row in result.predictions] == expected
    right = [named == example["label"] for named, example in zip(expected, examples, strict=True)]
    # Otherwise little would be seen here.
    assert {-1, 1} == set(expected) and {False, True} == set(right)
    assert result.metrics["accuracy_generated"] == np.mean(right)
    assert result.metrics["unanswered"] == np.mean([named == -1 for named in expected])
    assert [row["unanswered"] for row in result.predictions] == [named == -1 for named in expected]
    # The scores beside it are those of a task that has nothing written.
    built.max_new_tokens = None
    alone = built.evaluate(make(), examples, tokenizer, batch_size=batch_size)
    assert alone.metrics == {
        name: value for name, value in result.metrics.items() if name not in ("accuracy_generated", "unanswered")
    }
    for row, bare in zip(result.predictions, alone.predictions, strict=True):
        assert bare == {key: row[key] for key in bare} and "generated" not in bare


def test_the_report_knows_both_ways(tmp_path):
    tokenizer = bpe()
    built, examples = written_about(tiny_llama, tokenizer, tmp_path)
    result = built.evaluate(tiny_llama(), examples, tokenizer, batch_size=4)
    store = Store(tmp_path / "store")
    record = store.get(finish(store, result.predictions, task="sentiment"))
    record.result.metrics["test"].update(result.metrics)
    for name in ("accuracy_generated", "unanswered", "accuracy_norm"):
        scores = pred.scored(record, "test", name)
        assert scores.metric(np.arange(len(examples))) == result.metrics[name] and scores.is_proportion
        found = pred.over_examples(result.metrics[name], scores)
        assert found.low <= found.value <= found.high and found.low < found.high
        assert pred.difference({1: scores}, {1: scores}).value == 0


def test_the_prompt_that_is_continued_is_that_of_training(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(instructions("openbookqa")))
    blank = ["task.max_new_tokens=8", 'task.prompt="{question_stem}\\n"', "task.delimiter=''"]
    for overrides in (CONVENTION, blank):
        built, tokenizer, seen = made("openbookqa", f"task.data.path={path}", *overrides), byte_level(), []
        examples = built.splits()["train"]
        watched = tiny_llama(vocab_size=260, max_position_embeddings=512)
        built._written(watched, examples[:1], tokenizer, 1, None)
        watched.register_forward_pre_hook(lambda module, args, given: seen.append(given), with_kwargs=True)  # noqa: B023
        built._written(watched, examples, tokenizer, 1, None)
        shown = [given["input_ids"][0].tolist() for given in seen if given["input_ids"].shape[1] > 1]
        trained = [
            [token for token, label in zip(one["input_ids"], one["labels"], strict=True) if label == IGNORED]
            for one in built.encode(examples, tokenizer)
        ]
        assert sorted(shown) == sorted(trained) and len(shown) == len(examples)


@pytest.mark.parametrize("name", ["boolq", "piqa", "social_iqa", "hellaswag", "winogrande", "arc_easy", "openbookqa"])
def test_instructions_stand_in_the_template_with_the_files_own_output(tmp_path, name):
    path, rows = tmp_path / "rows.json", instructions(name)
    path.write_text(json.dumps(rows))
    built, tokenizer = made(name, f"task.data.path={path}", *CONVENTION), byte_level()
    examples = {row["id"]: row for part in built.splits().values() for row in part}
    template = yaml.safe_load((Path(__file__).parents[2] / "conf/task/alpaca.yaml").read_text())["prompt"][1]
    words = {"boolq": ["false", "true"], "piqa": ["solution1", "solution2"], "winogrande": ["option1", "option2"]}
    other = {"hellaswag": ("ending", 4), "social_iqa": ("answer", 3), "openbookqa": ("answer", 4)}
    for i, row in enumerate(rows):
        example = examples[f"row-{i}"]
        assert example["prompt"] == template.replace("\\n", "\n").replace("{instruction}", row["instruction"])
        word, count = other.get(name, ("answer", 3 + i % 3))
        called = words.get(name) or [f"{word}{n}" for n in range(1, count + 1)]
        assert example["words"] == called
        assert example["options"] == [f"the correct answer is {one}" for one in called]
        assert example["options"][example["label"]] == row["output"] and called[example["label"]] == row["answer"]
        (encoded,) = built.encode([example], tokenizer)
        shown = tokenizer.decode([token for token in encoded["labels"] if token != IGNORED])
        assert shown == f"{row['output']}</s>"
        assert tokenizer.decode(encoded["input_ids"]) == f"{example['prompt']}{row['output']}</s>"


def test_options_that_cannot_be_told_apart_within_the_instruction_are_no_matter(tmp_path):
    rows = instructions("openbookqa")
    rows[2]["instruction"] = rows[2]["instruction"].replace("second one", "a Answer2: b")
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    assert "several ways" in refusal(made("openbookqa", f"task.data.path={path}").splits)
    assert made("openbookqa", f"task.data.path={path}", *CONVENTION).splits()


def test_what_was_learned_by_heart_is_right_in_both_ways(tmp_path):
    path, rows = tmp_path / "rows.json", instructions("boolq")
    for i, row in enumerate(rows):
        word = "true" if i % 2 else "false"
        row |= {"answer": word, "output": f"the correct answer is {word}"}
        row["instruction"] = row["instruction"].replace("is it", ("zz " if i % 2 else "aaaa ") * (4 + i))
    path.write_text(json.dumps(rows))
    built, tokenizer = made("boolq", f"task.data.path={path}", *CONVENTION, "task.max_new_tokens=40"), byte_level()
    train = built.splits()["train"]
    examples = [[row for row in train if row["label"] == label][place] for place in (0, 1) for label in (0, 1)]
    torch.manual_seed(0)
    shape = {"vocab_size": 260, "max_position_embeddings": 512, "hidden_size": 64, "intermediate_size": 128}
    learner = tiny_llama(**shape).train()
    batch = built.collator(tokenizer, learner)(built.encode(examples, tokenizer))
    optimizer = torch.optim.AdamW(learner.parameters(), lr=3e-3)
    for _ in range(70):
        learner(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    result = built.evaluate(learner, examples, tokenizer, batch_size=3)
    assert result.metrics["accuracy_generated"] == result.metrics["accuracy_sum"] == 1.0
    for row, example in zip(result.predictions, examples, strict=True):
        assert row["generated"] == example["options"][example["label"]] and row["stopped"]
        assert row["prediction"] == row["prediction_generated"] == row["label"]


def test_a_mix_has_both_ways_of_every_task_and_their_means(tmp_path):
    names = ["boolq", "openbookqa"]
    built = mix(*paths(tmp_path, names, count=40), *CONVENTION, "task.max_length=400")
    assert built.primary_metric == "accuracy_generated"
    assert {(task.form, task.max_new_tokens, task.primary_metric) for task in built.tasks.values()} == {
        ("instruction", 8, "accuracy_sum"),
        ("instruction", 8, "accuracy_norm"),
    }
    # One answer named by what is written, whatever the question: the model is a random one.
    examples = built.splits()["test"]
    result = built.evaluate(
        tiny_llama(vocab_size=260, max_position_embeddings=512), examples, byte_level(), batch_size=16
    )
    rows = [{**row, "prediction_generated": i % 2, "unanswered": False} for i, row in enumerate(result.predictions)]
    metrics = dict(result.metrics)
    assert metrics["accuracy_generated"] == np.mean([metrics[f"accuracy_generated_{name}"] for name in names])
    assert metrics["unanswered"] == np.mean([row["unanswered"] for row in result.predictions])
    for name in names:
        own = [row["prediction_generated"] == row["label"] for row in rows if row["task"] == name]
        metrics[f"accuracy_generated_{name}"] = float(np.mean(own))
    metrics["accuracy_generated"] = float(np.mean([metrics[f"accuracy_generated_{name}"] for name in names]))
    metrics["unanswered"] = 0.0
    store = Store(tmp_path / "store")
    record = store.get(finish(store, rows, task="sentiment"))
    record.result.metrics["test"].update(metrics)
    for name in ("accuracy_generated", "accuracy_generated_boolq", "accuracy_generated_openbookqa", "accuracy_mean"):
        scores = pred.scored(record, "test", name)
        assert scores.metric(np.arange(len(scores.ids))) == pytest.approx(metrics[name])
    assert 0 < metrics["accuracy_generated"] < 1 and pred.scored(record, "test", "accuracy_generated_piqa") is None
    assert pred.scored(record, "test", "unanswered").metric(np.arange(len(rows))) == 0


def settings(*overrides):
    return OmegaConf.to_container(compose(list(overrides)))


@pytest.mark.parametrize("known", [True, False])
def test_a_plan_computes_the_first_and_the_last_token_that_are_written(tmp_path, known):
    rows = [{"question": f"q {i}", "options": ["x", "y"], "label": "0"} for i in range(9)]
    built, tokenizer, seen = questions(write(tmp_path, rows, "jsonl"), max_new_tokens=TOKENS), bpe(), []
    model = tiny_llama()
    model.register_forward_pre_hook(lambda module, args, given: seen.append(given), with_kwargs=True)
    longest = max(built.size(one).prompt for one in built.encode(built.splits()["train"], tokenizer))
    assert longest == max(len(tokenizer(f"q {i}")["input_ids"]) for i in range(9))
    size = Size(48, None, longest if known else None)
    batch = built.dummy_batch(model, 2, size, lambda shape: torch.ones(shape, dtype=torch.int64))
    built.dry_evaluation(model, batch, 1)
    shapes = [(tuple(given["input_ids"].shape), given["attention_mask"].shape[1]) for given in seen]
    prompt = longest if known else 48 - TOKENS
    # Whole examples, answers that share a prompt, and what is written.
    scored = [((2, 48), 48), ((2, 1), 1), ((2, 46), 47)]
    assert shapes == [*scored, ((2, prompt), prompt), ((2, 1), prompt + TOKENS - 1)]


@pytest.mark.parametrize("name", ["multiple_choice", "commonsense/piqa", "commonsense/mix"])
def test_what_is_off_is_in_no_id(name):
    now, before = settings(f"task={name}"), settings(f"task={name}")
    for task in (before["task"], *before["task"].get("tasks", {}).values()):
        # As they were recorded before there were these keys.
        del task["form"], task["max_new_tokens"]
    if name == "commonsense/mix":
        del before["task"]["primary_metric"]
    assert identity(now) == identity(before) != identity(settings(f"task={name}", "task.max_new_tokens=8"))
    instructed = identity(settings(f"task={name}", "task.form=instruction"))
    assert instructed["task"]["form"] == "instruction" and "max_new_tokens" not in instructed["task"]


def test_a_convention_is_one_override():
    alone = compose(["experiment=llm_adapters", "task=commonsense/piqa"]).task
    assert (alone.name, alone.form, alone.max_new_tokens) == ("piqa", "instruction", 32)
    assert alone.primary_metric == "accuracy_generated"
    whole = compose(["experiment=llm_adapters"]).task
    assert whole.primary_metric == "accuracy_generated" and {part.form for part in whole.tasks.values()} == {
        "instruction"
    }


def test_the_examples_that_are_shown_are_those_of_the_template(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(instructions("piqa")))
    found = inspect(made("piqa", f"task.data.path={path}", *CONVENTION), byte_level(), examples=1)
    (shown,) = found.splits["train"].rendered
    text = "".join(piece.text for piece in shown.pieces)
    assert text.startswith("Below is an instruction") and "\n\n### Response:\nthe correct answer is solution" in text
    assert "".join(piece.text for piece in shown.pieces if piece.loss).startswith("the correct answer is solution")
    assert shown.pieces[-1].special and shown.pieces[-1].loss


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_new_tokens": 0}, "task.max_new_tokens=0: expected a whole number, at least 1"),
        ({"max_new_tokens": 48}, "task.max_new_tokens=48: leaves no token of task.max_length=48 to the prompt"),
        ({"primary_metric": "accuracy_generated"}, "task.primary_metric=accuracy_generated: .*set task.max_new_tokens"),
        ({"form": "letters"}, "task.form=letters: expected fields or instruction"),
        ({"form": "instruction"}, "task.form=instruction: task.llm_adapters .* is null"),
        ({"options": ["{a}", "{b}"], "max_new_tokens": 8}, r"line 5: options 1 and 2 are the same words \(B 4\)"),
        ({"options": ["{a}", " "], "max_new_tokens": 8}, r"line 1: option 2 is empty: no text can name it; drop"),
    ],
)
def test_every_mistake_is_one_line(tmp_path, changes, said):
    rows = [{"question": f"q {i}", "a": f"a {i}", "b": f"b {i}", "label": "0"} for i in range(9)]
    rows[4] |= {"a": "b 4", "b": "B  4"}
    path = write(tmp_path, rows, "jsonl")
    message = refusal(lambda: questions(path, **{"options": ["{a}", "x"], **changes}).splits())
    assert re.search(said, message), message


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["task=commonsense/piqa"], "task.form=instruction: reads files with the columns instruction, output, answer"),
        (["task=commonsense/rte"], "task.form=instruction: task.llm_adapters says how the answers are called"),
        (["task.tasks.piqa.form=fields"], "task.tasks.piqa.form=fields: differs from task.form=instruction"),
        (["task.tasks.piqa.max_new_tokens=9"], "task.tasks.piqa.max_new_tokens=9: differs from task.max_new_tokens=32"),
        (["task.primary_metric=accuracy_sum"], "no such metric; expected accuracy_mean, accuracy_generated"),
        (["task.max_new_tokens=null"], "task.primary_metric=accuracy_generated: is of what the model writes"),
    ],
)
def test_mistakes_of_the_convention_are_named(overrides, said):
    from rowsft.config.instantiate import instantiated
    from rowsft.tasks import Task

    config = compose(["experiment=llm_adapters", *overrides])
    assert said in refusal(lambda: instantiated("task", config.task, Task).splits())
