"""BoolQ, PIQA and OpenBookQA on real files, with one override each: whole runs of a tiny model."""

import json
import re

import pytest
from hydra.utils import instantiate
from shared_data import shared_data
from tiny import tiny_llama
from tiny_tokenizer import byte_level

from rowsft.config.compose import compose
from rowsft.report.predictions import scored
from rowsft.store import Store

FILES = {
    "boolq": ("boolq/train.json", "boolq/test.json"),
    "piqa": ("piqa/test.json",),
    "openbookqa": ("openbookqa/train.json",),
}
MISSING = ("social_iqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge")
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
NORMS = ("sum", "norm", "bytes", "tokens", "pmi")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_llama(vocab_size=260, max_position_embeddings=512).save_pretrained(folder)
    byte_level().save_pretrained(folder)
    return folder


def run(workshop, store, model, *overrides):
    """The record of a small run of the tiny model; all but `overrides` makes it small."""
    done = workshop.rowsft(
        *("run", *overrides, "trainer.steps=2", "trainer.batch_size=4", f"store={store}"),
        *("model=llama2_7b", f"model.source={model}", "model.dtype=float32", "method=row_sft", "budget.rows=2"),
        *("trainer.device=cpu", "trainer.calibration_batches=2", "trainer.memory_probe_steps=0"),
    )
    assert done.returncode == 0, done.stderr
    (record,) = Store(store).runs()
    rows = [json.loads(line) for line in record.file("predictions").read_text().splitlines()]
    return record, [row for row in rows if row.get("split", "test") == "test"]


def computed_again(record, names):
    """Every metric follows from the predictions."""
    for name in names:
        found = scored(record, "test", name)
        again = found.metric(list(range(len(found.ids))))
        assert again == pytest.approx(record.result.metrics["test"][name], rel=1e-9), name


def data_of(name):
    """The path of a task's files: a folder with one for each split, or a single one, which is cut into three."""
    paths = shared_data(*FILES[name])
    return paths[0].parent if len(paths) > 1 else paths[0]


def rows_of(name):
    return [row for path in shared_data(*FILES[name]) for row in json.loads(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("name", FILES)
def test_a_task_runs_on_real_files_with_one_override(workshop, tmp_path, model, name):
    small = ["task.limits={train: 24, validation: 8, test: 40}", 'task.pmi="Answer:"']
    data = f"task.data.path={data_of(name)}"
    record, test = run(workshop, tmp_path / "store", model, f"task=commonsense/{name}", data, *small)
    assert len(test) == 40 and len({row["id"] for row in test}) == 40
    computed_again(record, ("loss", "perplexity", "bits_per_byte", *(f"accuracy_{norm}" for norm in NORMS)))


def test_the_mix_runs_on_real_files(workshop, tmp_path, model):
    overrides = [
        *("task=commonsense/mix", "task.limits={train: 24, validation: 30, test: 60}"),
        *(f"task.tasks.{name}=null" for name in MISSING),
        *(f"task.tasks.{name}.data.path={data_of(name)}" for name in FILES),
    ]
    record, test = run(workshop, tmp_path / "store", model, *overrides)
    assert {row["task"] for row in test} == set(FILES) and len(test) == 60
    computed_again(record, ("loss", "accuracy_mean", *(f"accuracy_{name}" for name in FILES)))
    assert record.result.primary_metric == "accuracy_mean"


@pytest.mark.parametrize("name", [*FILES, "mix"])
def test_the_convention_of_the_llm_adapters_papers_is_one_override(workshop, tmp_path, model, name):
    """Beside the data: the real files' own instruction in Alpaca's template, their output, and what is written."""
    parts = [f"task.tasks.{other}=null" for other in MISSING] + [
        f"task.tasks.{other}.data.path={data_of(other)}" for other in FILES
    ]
    data = parts if name == "mix" else [f"task.data.path={data_of(name)}"]
    small = ["task.limits={train: 24, validation: 12, test: 24}", "task.max_new_tokens=6"]
    overrides = ["experiment=llm_adapters", f"task=commonsense/{name}", *data, *small]
    record, test = run(workshop, tmp_path / "store", model, *overrides)
    assert record.result.primary_metric == "accuracy_generated" and len(test) == 24
    others = [f"accuracy_generated_{other}" for other in FILES] if name == "mix" else ["accuracy_sum", "accuracy_norm"]
    computed_again(record, ("loss", "accuracy_generated", "unanswered", *others))
    words = r"(?<!\w)(true|false|solution[12]|answer[1-4])(?!\w)"
    for row in test:
        found = re.search(words, row["generated"], re.IGNORECASE)
        assert row["unanswered"] is (found is None) and (row["prediction_generated"] == -1) is (found is None)
        assert row["generated_tokens"] <= 6
    # The text is the file's own.
    task = instantiate(compose(overrides).task)
    outputs = {row["instruction"]: row["output"] for other in FILES for row in rows_of(other)}
    for example in (example for part in task.splits().values() for example in part):
        before, after = ALPACA.split("{instruction}")
        instruction = example["prompt"].removeprefix(before).removesuffix(after)
        assert f"{before}{instruction}{after}" == example["prompt"]
        assert example["options"][example["label"]] == outputs[instruction]


def test_every_row_of_the_real_files_is_taken_apart():
    sizes = {"boolq": 9427 + 3270, "piqa": 1838, "openbookqa": 4957}
    for name in FILES:
        task = instantiate(compose([f"task=commonsense/{name}", f"task.data.path={data_of(name)}"]).task)
        rows = [row for part in task.splits().values() for row in part]
        assert len(rows) == sizes[name]
        assert {len(row["options"]) for row in rows} == {4 if name == "openbookqa" else 2}
