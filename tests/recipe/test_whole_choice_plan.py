"""A plan of evaluating multiple choice bounds what the run takes, however many options share a prompt."""

import json
import shutil

import pytest
from tiny import tiny_llama

from rowsft.config.compose import compose
from rowsft.config.run_spec import run_spec
from rowsft.config.settings import trainer_settings
from rowsft.plan import plan
from rowsft.runner.run import run
from rowsft.store import Store

pytestmark = pytest.mark.whole

# Prompts that fill the length, options that do, and both by turns.
SHAPES = {"prompts": (60, 4), "options": (1, 63), "both": (None, None)}


@pytest.fixture(scope="module")
def keeper(workshop):
    """A model whose keys and values outweigh its logits."""
    folder = workshop.folder / "models" / "keeper"
    shutil.copytree(workshop.folder / "models" / "llama", folder)
    tiny_llama(num_hidden_layers=6, num_key_value_heads=4).save_pretrained(folder)
    return folder


def rows(shape, options):
    for number in range(4):
        prompt, option = SHAPES[shape]
        if prompt is None:
            prompt, option = [(60, 4), (4, 60)][number % 2]
        texts = [" ".join([f"w{number}", *["w7"] * (option - 2), f"w{index}"]) for index in range(options)]
        yield {"question": " ".join([f"w{number}"] * prompt), "options": texts, "label": number % options}


@pytest.mark.parametrize(
    ("shape", "overrides"),
    [
        ("prompts", ["method=row_sft", "method.importance=l2"]),
        ("options", ["method=none"]),
        ("both", ["method=lora", "trainer=bf16"]),
    ],
)
def test_forty_options_take_no_more_than_a_plan_of_eight_says(workshop, keeper, tmp_path, shape, overrides):
    file = tmp_path / "quiz.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows(shape, 40)))
    given = [text for text in workshop.overrides("llama") if not text.startswith("task")]
    given += [f"task.data.{split}_path={file}" for split in ("train", "validation", "test")]
    given += ["task=multiple_choice", "task.max_length=64", 'task.prompt="{question}"', f"model.source={keeper}"]
    given += [f"store={tmp_path / 'runs'}", "trainer.steps=2", "trainer.eval_batch_size=8", "trainer.evaluate=[train]"]
    config = compose([*given, *overrides])
    planned = plan(config, trainer_settings(config))
    spec = run_spec(config)
    outcome = run(spec, trainer_settings(config), rerun=False, say=str)
    assert outcome.state == "done", outcome.message
    measured = Store(tmp_path / "runs").get(spec.run_id).result.memory.evaluate.peak_allocated_bytes
    assert measured <= 1.001 * planned.evaluation_bytes
    if shape == "options":
        # All that a plan takes for granted: the options fill the length.
        assert measured >= 0.97 * planned.evaluation_bytes
