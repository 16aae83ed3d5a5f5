"""Own data in three overrides: the commands of README.md as they stand there, on tiny models and files."""

import csv
import json
import random
import re
import shlex
import shutil
from pathlib import Path

import pytest
from tiny_workshop import WORDS

from rowsft.config.compose import compose
from rowsft.config.run_spec import run_spec
from rowsft.config.settings import trainer_settings
from rowsft.runner.run import run
from rowsft.store import Store

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
LINES = re.findall(r"^    rowsft run (.*model\.source=.*)$", README, re.MULTILINE)
COMMANDS = {words[0].removeprefix("task="): words for words in map(shlex.split, LINES)}
SMALL = [
    *("model.dtype=float32", "task.max_length=64", "budget.rows=3"),
    *("trainer.steps=2", "trainer.batch_size=4", "trainer.device=cpu", "trainer.calibration_batches=1"),
    *("trainer.timing_warmup_steps=1", "trainer.memory_probe_steps=1"),
]
METRIC = {"text_classification": "accuracy", "prompt_response": "loss", "multiple_choice": "accuracy_norm"}


@pytest.fixture
def folder(workshop, tmp_path, monkeypatch):
    """The model folders and the files that the commands name, in the working folder."""
    for family in ("bert", "llama"):
        shutil.copytree(workshop.folder / "models" / family, tmp_path / f"my-{family}")
    draw = random.Random(0)

    def text(count):
        return " ".join(draw.choices(WORDS, k=count))

    with (tmp_path / "reviews.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "body", "stars"])
        writer.writerows([number, text(6), number % 3] for number in range(40))
    pairs = [{"question": text(5), "response": text(3)} for _ in range(40)]
    quiz = [{"question": text(5), "first": text(2), "second": text(3), "label": number % 2} for number in range(40)]
    for name, rows in (("pairs", pairs), ("quiz", quiz)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_readme_shows_three_tasks():
    assert COMMANDS.keys() == METRIC.keys()


@pytest.mark.parametrize("task", METRIC)
def test_three_overrides_run_on_own_data(task, folder):
    chosen, own = COMMANDS[task][:2], COMMANDS[task][2:]
    assert [word.split("=")[0] for word in chosen] == ["task", "model"]
    assert len(own) == 3 and own[0].startswith("model.source=") and own[1].startswith("task.data.path=")
    config = compose([*chosen, *own, *SMALL, f"store={folder / 'runs'}"])
    spec = run_spec(config)
    outcome = run(spec, trainer_settings(config), rerun=False, say=lambda text: None)
    assert outcome.state == "done", outcome.message
    result = Store(folder / "runs").get(spec.run_id).result
    assert METRIC[task] in result.metrics["test"]
    if task == "text_classification":
        assert result.task_about.classes == ["0", "1", "2"]
