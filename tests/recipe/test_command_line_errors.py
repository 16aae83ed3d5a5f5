"""Settings, data and models that cannot be run, given to the command line: one line, and no trace in the store."""

import shutil
from pathlib import Path

import pytest
import torch
from tiny_workshop import only_run

from rowsft.store import Store

pytestmark = pytest.mark.whole


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["budget.rows=4096"], "rows=4096 exceeds layer"),
        (["task.columns.text=sentence"], "sentence"),
        (["task.data.path=absent.csv"], "absent.csv"),
        (["model.target_modules=[nothing_like_it]"], "nothing_like_it"),
        (["model.source=./absent-folder"], "absent-folder"),
        (["method=lorra"], "lora"),
        (["trainer.step=3"], "trainer.steps"),
        pytest.param(
            ["trainer.device=cuda"],
            "no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device"),
        ),
        (["task.max_length=65"], "64 positions; lower it to 64"),
        (["seed=x"], "seed=x"),
        (["task.regression=true"], "pearson or spearman"),
        (["task.max_length=long"], "task.max_length=long: expected a whole number"),
        (["trainer.evaluate=[]"], "trainer.evaluate=[]"),
        (["task.labels=[bad,good,bad]"], "named twice"),
        (["task.limits.train=true"], "task.limits.train=true: expected a whole number or null"),
        (["task.data.split_seed=x"], "task.data.split_seed=x"),
        (["+model.load_in_4bit=true"], "model.load_in_4bit: nothing reads this key"),
        (["model.head_modules=[no_such_head]", "method=lora"], "no_such_head"),
    ],
)
def test_bad_input_is_one_line_and_status_2(workshop, extra, said):
    done = workshop.rowsft("run", *workshop.overrides("bert"), "experiment_name=bad", *extra)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("rowsft: error: ") and said in line
    assert Store(workshop.folder / "runs").runs("bad") == []


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", '{"model_type": "bert", "hidden_act": "nope"}'),
        ("config.json", '{"model_type": "bert", "dtype": "nope"}'),
        ("tokenizer.json", "{}"),
        ("model.safetensors.index.json", "{"),
    ],
)
def test_a_broken_model_folder_is_one_line_and_leaves_no_trace(workshop, tmp_path, file, content):
    folder = tmp_path / "broken"
    shutil.copytree(workshop.folder / "models" / "bert", folder)
    (folder / file).write_text(content)
    if "index" in file:
        (folder / "model.safetensors").unlink()
    # After the others, which it replaces.
    done = workshop.rowsft("run", *workshop.overrides("bert"), "method=none", f"model.source={folder}", "seed=77")
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"rowsft: error: model.source={folder}: ")
    assert all(record.config["seed"] != 77 for record in Store(workshop.folder / "runs").runs())


def test_bad_input_found_before_the_data_leaves_no_run(workshop):
    command = [*workshop.overrides("bert"), "method=lora", "method.scaling=-1", "experiment_name=traceless"]
    assert workshop.rowsft("run", *command).returncode == 2
    assert Store(workshop.folder / "runs").runs("traceless") == []


def test_diverged_run_is_recorded_as_failed(workshop):
    command = [*workshop.overrides("bert"), "method=full", "experiment_name=diverged", "trainer.learning_rate=1e30"]
    done = workshop.rowsft("run", *command, "trainer.max_grad_norm=0")
    assert done.returncode == 1
    record = only_run(workshop, "diverged")
    assert record.state == "failed"
    assert "lower trainer.learning_rate" in record.latest.error.message
    assert (Path(record.folder) / "attempt-1" / "curve.csv").exists()
