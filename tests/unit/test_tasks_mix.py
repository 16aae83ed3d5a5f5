"""Several multiple-choice tasks as one: their own scores, the mean of them, and what a report makes of both."""

import json

import numpy as np
import pytest
from hydra.utils import instantiate
from refusals import refusal
from report_factory import finish
from test_tasks_commonsense import MAKERS, instructions
from tiny import tiny_llama
from tiny_tokenizer import byte_level

from rowsft.config.compose import compose
from rowsft.report import predictions as pred
from rowsft.report.resampling import one_by_one
from rowsft.store import Store

EIGHT = [name for name in MAKERS if name != "rte"]


def paths(folder, names=EIGHT, count=12):
    """Overrides that put files of instructions in the place of the hub, for those tasks alone."""
    overrides = []
    for name in EIGHT:
        if name not in names:
            overrides.append(f"task.tasks.{name}=null")
            continue
        path = folder / f"{name}.json"
        path.write_text(json.dumps(instructions(name, count)))
        overrides.append(f"task.tasks.{name}.data.path={path}")
    return overrides


def mix(*overrides):
    return instantiate(compose(["task=commonsense/mix", *overrides]).task)


def test_the_mix_is_every_task_with_the_settings_that_it_has_alone(tmp_path):
    overrides = paths(tmp_path)
    built = mix("task.max_length=200", *overrides)
    assert list(built.tasks) == EIGHT and {task.max_length for task in built.tasks.values()} == {200}
    assert built.data_at_hand()
    splits = built.splits()
    for name in EIGHT:
        alone = instantiate(compose([f"task=commonsense/{name}", f"task.data.path={tmp_path / name}.json"]).task)
        for split, examples in alone.splits().items():
            own = [{k: v for k, v in row.items() if k != "task"} for row in splits[split] if row["task"] == name]
            assert own == [{**row, "id": f"{name}/{row['id']}"} for row in examples]
    about = built.about()
    assert about["counts"]["piqa"]["sizes"] == {"train": 9, "validation": 1, "test": 2}
    assert set(about["sha256"]) == {f"{name}.path" for name in EIGHT}


@pytest.fixture
def evaluated(tmp_path):
    built = mix(*paths(tmp_path, ["boolq", "openbookqa", "arc_easy"], count=60), "task.max_length=120")
    model = tiny_llama(vocab_size=260, max_position_embeddings=256)
    examples = built.splits()["test"]
    # In turn, so that the order of the predictions is put right.
    examples = [*examples[::2], *examples[1::2]]
    return built, model, examples, built.evaluate(model, examples, byte_level(), batch_size=16)


def test_each_task_has_its_score_and_all_have_a_mean(evaluated):
    built, model, examples, result = evaluated
    assert [row["id"] for row in result.predictions] == [row["id"] for row in examples]
    scores, nats, tokens = [], 0.0, 0
    for name, task in built.tasks.items():
        own = [row for row in examples if row["task"] == name]
        alone = task.evaluate(model, own, byte_level(), batch_size=3)
        scores.append(alone.metrics[task.primary_metric])
        assert result.metrics[f"accuracy_{name}"] == scores[-1]
        nats += sum(row["negative_log_likelihood"] for row in alone.predictions)
        tokens += sum(row["tokens"] for row in alone.predictions)
    assert result.metrics["accuracy_mean"] == pytest.approx(sum(scores) / 3)
    assert result.metrics["loss"] == pytest.approx(nats / tokens, rel=1e-5)
    assert built.reference_metrics(model, examples, None)["chance_accuracy"] == pytest.approx(
        np.mean(
            [
                task.reference_metrics(model, [e for e in examples if e["task"] == name], None)["chance_accuracy"]
                for name, task in built.tasks.items()
            ]
        )
    )


def test_the_report_computes_every_score_again_with_its_interval(evaluated, tmp_path):
    *_, result = evaluated
    store = Store(tmp_path / "store")
    record = store.get(finish(store, result.predictions, task="sentiment"))
    record.result.metrics["test"].update(result.metrics)
    for name in ("accuracy_mean", "accuracy_boolq", "accuracy_openbookqa", "accuracy_arc_easy"):
        scores = pred.scored(record, "test", name)
        own = [row for row in result.predictions if name in ("accuracy_mean", f"accuracy_{row['task']}")]
        n = len(own)
        assert set(scores.ids) == {str(row["id"]) for row in own}
        assert scores.metric(np.arange(n)) == pytest.approx(result.metrics[name])
        # All resamples at once are those of one by one.
        assert scores.draws == pytest.approx(one_by_one(scores.metric, n), abs=1e-6)
        found = pred.over_examples(result.metrics[name], scores)
        assert found.low <= result.metrics[name] <= found.high and found.low < found.high
    assert pred.scored(record, "test", "accuracy_piqa") is None
    n = len(result.predictions)
    assert pred.scored(record, "test", "loss").metric(np.arange(n)) == pytest.approx(result.metrics["loss"])


@pytest.mark.filterwarnings("error")
def test_a_task_of_few_examples_leaves_the_mean_its_interval():
    lines = [{"id": i, "task": "large", "correct": i % 3 == 0} for i in range(50)]
    lines += [{"id": 50 + i, "task": "small", "correct": i == 0} for i in range(2)]
    mean = (17 / 50 + 1 / 2) / 2
    found = pred.over_examples(mean, pred.scored_lines(lines, "accuracy_mean", mean))
    assert found.low < mean < found.high


def test_training_examples_are_those_of_their_tasks(tmp_path):
    built, tokenizer = mix(*paths(tmp_path, ["boolq", "piqa"])), byte_level()
    examples = built.splits()["train"]
    for example, encoded in zip(examples, built.encode(examples, tokenizer), strict=True):
        assert encoded == built.tasks[example["task"]].encode([example], tokenizer)[0]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([f"task.tasks.{name}=null" for name in EIGHT], "task.tasks: names no task"),
        (["task.tasks.piqa=3"], "task.tasks.piqa=3: is no multiple-choice task"),
        (["task.tasks.piqa.primary_metric=loss"], "task.tasks.piqa.primary_metric=loss: expected an accuracy"),
        (["task.tasks.piqa.max_length=600"], "task.tasks.piqa.max_length=600: exceeds task.max_length=512"),
        (["task.limits.validation=1"], "task.limits.validation=1: leaves no example of"),
        (["task.tasks.piqa.data.path=nowhere.json"], "task.tasks.piqa: task.data.path=nowhere.json: no such file"),
    ],
)
def test_mistakes_are_named(tmp_path, overrides, said):
    from rowsft.config.instantiate import instantiated
    from rowsft.tasks import Task

    all_of_them = [*paths(tmp_path), *overrides]
    message = refusal(lambda: instantiated("task", compose(["task=commonsense/mix", *all_of_them]).task, Task).splits())
    assert said in message, message
