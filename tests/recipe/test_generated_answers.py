"""Whole runs of tasks whose answers are written by the model, on tiny models: GSM8K's real files, and against plans."""

import json

import pytest
from shared_data import shared_data
from tiny import tiny_llama
from tiny_tokenizer import byte_level

from rowsft.config.compose import compose
from rowsft.config.run_spec import run_spec
from rowsft.config.settings import trainer_settings
from rowsft.plan import plan
from rowsft.plan.lengths import of_data
from rowsft.report.predictions import difference, over_examples, scored
from rowsft.runner.run import run
from rowsft.store import Store
from rowsft.tasks.final_number import final_number

VOCABULARY = 320


@pytest.fixture(scope="module")
def writer(workshop):
    """A folder with a tiny model whose tokenizer knows digits; 512 positions."""
    folder = workshop.folder / "models" / "writer"
    tiny_llama(vocab_size=VOCABULARY, max_position_embeddings=512).save_pretrained(folder)
    byte_level(["she has 12 apples and gives 3 of them away"] * 50, VOCABULARY).save_pretrained(folder)
    return folder


def settings(workshop, writer, *overrides, task="gsm8k"):
    own = ("task=", "task.data.path=", "task.max_length=")
    return [
        *(one for one in workshop.overrides("llama") if not one.startswith(own)),
        *(f"model.source={writer}", f"task={task}", "trainer.steps=2", *overrides),
    ]


def done(given):
    config = compose(given)
    outcome = run(run_spec(config), trainer_settings(config), rerun=True, say=lambda text: None)
    assert outcome.state == "done", outcome.message
    return Store(config.store).get(outcome.run_id)


def rows_of(record):
    return [json.loads(line) for line in record.file("predictions").read_text().splitlines()]


def test_every_answer_of_the_real_files_is_read_as_the_harness_reads_it():
    """lm-evaluation-harness: what follows `#### `, without commas."""
    for file in shared_data("gsm8k/train.jsonl", "gsm8k/test.jsonl"):
        answers = [json.loads(line)["answer"] for line in file.read_text(encoding="utf-8").splitlines()]
        assert [final_number(answer) for answer in answers] == [
            answer.partition("#### ")[2].replace(",", "") for answer in answers
        ]


def test_gsm8k_runs_on_its_real_files(workshop, writer):
    train, test = shared_data("gsm8k/train.jsonl", "gsm8k/test.jsonl")
    assert train.parent == test.parent
    given = settings(workshop, writer, f"task.data.path={train.parent}")
    given += ["task.max_new_tokens=20", "trainer.eval_batch_size=4"]
    given += ["task.limits={train:24,validation:5,test:9}", "trainer.memory_probe_steps=0", "method.importance=l2"]
    records = {seed: done([*given, f"seed={seed}"]) for seed in (1, 2)}
    record = records[1]
    assert record.result.task_about.sizes == {"train": 24, "validation": 5, "test": 9}
    assert record.result.primary_metric == "exact_match"
    assert record.result.metrics["test"].keys() == {
        *("exact_match", "loss", "perplexity", "bits_per_byte", "token_accuracy")
    }
    rows = rows_of(record)
    assert [row["split"] for row in rows] == ["validation"] * 5 + ["test"] * 9
    gold = [json.loads(line)["answer"].partition("#### ")[2] for line in test.read_text().splitlines()]
    for row in rows[5:]:
        assert row["label"] == gold[int(row["id"].partition("-")[2])].replace(",", "")
        assert row["generated_tokens"] <= 20 and isinstance(row["stopped"], bool)
    # As an accuracy: an interval of its own, and differences in pairs.
    values = {seed: scored(record, "test") for seed, record in records.items()}
    assert values[1].is_proportion and len(values[1].ids) == 9
    estimate = over_examples(record.result.metrics["test"]["exact_match"], values[1])
    assert estimate.low <= estimate.value < estimate.high
    assert difference({0: values[1]}, {0: values[2]}).examples == 9


@pytest.fixture(scope="module")
def keeper(workshop):
    """One whose keys and values outweigh all else: 16 KiB a token in 32 bits."""
    folder = workshop.folder / "models" / "keeper"
    shape = {"num_hidden_layers": 4, "num_key_value_heads": 4, "head_dim": 128, "max_position_embeddings": 512}
    tiny_llama(vocab_size=260, **shape).save_pretrained(folder)
    byte_level().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sums(workshop):
    """Problems with short answers, of which all but a few are equally long."""
    file = workshop.folder / "data" / "sums.jsonl"
    questions = [f"{'and again ' * (4 if i % 5 else 1)}{i:03}" for i in range(20)]
    file.write_text("".join(json.dumps({"q": q, "a": f"#### {q[-3:]}"}) + "\n" for q in questions))
    return file


PLANNED = [
    ["method=none", "trainer.eval_batch_size=1"],
    ["method=row_sft", "method.importance=l2"],
    ["method=lora", "trainer=bf16"],
    ["method=row_sft", "method.importance=l2", "model.dtype=bfloat16"],
]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("overrides", PLANNED, ids=" ".join)
def test_a_planned_evaluation_holds_the_cache_of_what_is_written(workshop, keeper, sums, overrides):
    """With the lengths of the data a plan is that of the run; without, a bound."""
    given = settings(workshop, keeper, 'task.prompt="{q}"', 'task.response="{a}"', f"task.data.path={sums}")
    given += ["task.max_new_tokens=24", "task.max_length=88", "task.stop=[]", "task.data.validation=0.5"]
    given += ["trainer.eval_batch_size=6", "trainer.evaluate=[validation]", *overrides]
    config = compose(given)
    of_the_data, of_none = (
        plan(config, trainer_settings(config), lengths=lengths).evaluation_bytes for lengths in (of_data(config), None)
    )
    # The longest prompt has 43 bytes, and the last token written has no keys and values.
    cached = config.trainer.eval_batch_size * (43 + 23) * 2 * 4 * 4 * 128 * (2 if "bf" in " ".join(overrides) else 4)
    record = done(given)
    assert {row["generated_tokens"] for row in rows_of(record)} >= {24}
    measured = record.result.memory.evaluate.peak_allocated_bytes
    assert of_the_data == pytest.approx(measured, rel=1e-3)
    assert cached < of_the_data < of_none


@pytest.mark.usefixtures("one_thread")
def test_a_planned_evaluation_of_choices_holds_the_cache_of_what_is_written(workshop, keeper, sums):
    rows = [json.loads(line) for line in sums.read_text().splitlines()]
    file = sums.with_name("choices.jsonl")
    file.write_text("".join(json.dumps({**row, "options": ["12", "7"], "label": "0"}) + "\n" for row in rows))
    given = settings(workshop, keeper, 'task.prompt="{q}"', f"task.data.path={file}", task="multiple_choice")
    given += ["task.max_new_tokens=24", "task.max_length=88", "task.data.validation=0.5", "trainer.eval_batch_size=6"]
    given += ["trainer.evaluate=[validation]", "method=row_sft", "method.importance=l2"]
    config, unwritten = compose(given), compose([*given, "task.max_new_tokens=null"])
    of_the_data, of_none, without = (
        plan(one, trainer_settings(one), lengths=lengths).evaluation_bytes
        for one, lengths in ((config, of_data(config)), (config, None), (unwritten, of_data(unwritten)))
    )
    cached = 6 * (43 + 23) * 2 * 4 * 4 * 128 * 4
    measured = done(given).result.memory.evaluate.peak_allocated_bytes
    assert cached < measured and measured == pytest.approx(of_the_data, rel=1e-3)
    assert without <= of_the_data <= of_none
