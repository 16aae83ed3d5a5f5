"""Tasks of a user's own, on texts and on images: one module and one YAML each, planned and run like a shipped one."""

import csv
import json
import random
import shutil
import sys
from pathlib import Path

import pytest
import torch
from tiny import build, tiny_bert
from tiny_workshop import WORDS, tokenizer
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from rowsft.cli.main import main

HERE = Path(__file__).parent
SETTINGS = ["trainer.steps=6", "trainer.batch_size=4", "trainer.device=cpu", "trainer.memory_probe_steps=1"]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A working folder: conf/ with a YAML a task, the tasks' modules beside it, and what they need."""
    shutil.copytree(HERE / "conf", tmp_path / "conf")
    for module in ("word_count", "bright_corner"):
        shutil.copy(HERE / f"{module}.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for module in ("word_count", "bright_corner"):
        sys.modules.pop(module, None)


def overrides_of(task: str, folder: Path) -> list[str]:
    """Save the model, and the file of texts, that a task needs; return what a command says to use them."""
    if task == "bright_corner":
        sizes = {"image_size": 8, "patch_size": 4, "hidden_size": 32, "intermediate_size": 64}
        config = ViTConfig(**sizes, num_hidden_layers=2, num_attention_heads=4)
        build(ViTForImageClassification, config, torch.float32, 0).save_pretrained(folder / "model")
        ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder / "model")
        return ["task=bright_corner", "model=tiny_vit"]
    tiny_bert(num_labels=1).save_pretrained(folder / "model")
    tokenizer("bert").save_pretrained(folder / "model")
    draw = random.Random(0)
    with (folder / "texts.csv").open("w", newline="") as lines:
        table = csv.writer(lines)
        table.writerow(["text"])
        table.writerows([[" ".join(draw.choices(WORDS[:20], k=draw.randint(3, 20)))] for _ in range(60)])
    return ["task=word_count", "model=bert_base", "model.source=./model"]


def status(arguments: list[str]) -> int:
    """The exit status of a command."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code


@pytest.mark.parametrize("method", ["row_sft", "lora"])
@pytest.mark.parametrize(
    ("task", "metrics"), [("word_count", {"pearson", "spearman", "loss"}), ("bright_corner", {"accuracy"})]
)
def test_a_task_of_ones_own_is_planned_and_run_as_a_shipped_one(project, capsys, task, metrics, method):
    arguments = [*overrides_of(task, project), f"method={method}", "budget.rows=2", *SETTINGS]
    if method == "row_sft":
        # A metric that is shown the task's own batches.
        arguments.append("method.importance=taylor")
    assert status(["plan", "--json", *arguments]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert status(["run", *arguments]) == 0
    (file,) = project.glob("runs/*/record.json")
    (attempt,) = json.loads(file.read_text())["attempts"]
    assert attempt["state"] == "done" and set(attempt["metrics"]["test"]) == metrics
    assert attempt["train_examples"] == 6 * 4
    assert plan["lengths"]["source"] == "data"
    # The dummy batch is what the collator makes of the longest examples.
    assert plan["peak_bytes"] == pytest.approx(attempt["memory"]["train"]["peak_allocated_bytes"], rel=1e-3)


@pytest.mark.parametrize("task", ["bright_corner", "word_count"])
def test_task_show_knows_examples_of_any_kind(task, project, capsys):
    name, *overrides = overrides_of(task, project)
    assert status(["task", "show", name.removeprefix("task="), *overrides, "--examples", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (shown,) = found["splits"]["test"]["rendered"]
    assert not any(overlap["count"] for overlap in found["overlaps"])
    assert status(["task", "show", name.removeprefix("task="), *overrides, "--examples", "1"]) == 0
    printed = capsys.readouterr().out
    if task == "bright_corner":
        assert shown["inputs"] == {"pixel_values": [3, 8, 8]} and "pixel_values: 3 x 8 x 8" in printed
        assert sum(found["splits"]["test"]["labels"]["counts"].values()) == 16 and "top left" in printed
    else:
        assert shown["tokens"] == len(shown["pieces"]) and found["splits"]["test"]["labels"]["least"] >= 1
