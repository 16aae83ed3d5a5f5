"""A method from outside the package: one Python file and one YAML beside the user's own working folder."""

import json
import re
import shutil
from base64 import b64decode
from pathlib import Path

import pytest
from safetensors import safe_open
from tiny_workshop import build_workshop, last_line

from rowsft.store import Record, Store

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A working folder with the example's two files, in which its method and LoRA have been run."""
    workshop = build_workshop(tmp_path_factory.mktemp("own"))
    shutil.copy(HERE / "attention_only.py", workshop.folder)
    (workshop.folder / "conf" / "method").mkdir(parents=True)
    shutil.copy(HERE / "conf" / "method" / "attention_only.yaml", workshop.folder / "conf" / "method")
    for method in ("lora", "attention_only"):
        done = workshop.rowsft("run", *workshop.overrides("bert"), f"method={method}", "experiment_name=own")
        assert done.returncode == 0, done.stderr
        assert last_line(done).startswith("done: run ")
    return workshop


def recorded(own) -> Record:
    """The run of the example's method."""
    records = Store(own.folder / "runs").runs("own")
    (record,) = [one for one in records if one.config["method"]["name"] == "attention_only"]
    return record


def test_a_method_of_ones_own_trains_and_saves_what_it_says(own):
    record = recorded(own)
    with safe_open(record.file("adapter") / "attention.safetensors", "pt") as saved:
        sizes = {name: saved.get_tensor(name).numel() for name in saved.keys()}  # noqa: SIM118
    parts = record.result.parameters
    attention = {name for name in sizes if "attention" in name}
    assert attention and set(sizes) - attention >= {"classifier.weight", "classifier.bias"}
    assert (parts.budget_asked, parts.total_trainable) == (None, sum(sizes.values()))
    assert not any("intermediate" in name or "embeddings" in name for name in sizes)


def test_the_report_shows_it_by_its_own_title_and_colour_in_its_own_place(own):
    done = own.rowsft("report", "--experiment", "own", "--out", "report", "--store", "runs")
    assert done.returncode == 0, done.stderr
    assert done.stdout.index("attention only") < done.stdout.index("LoRA")
    markdown = (own.folder / "report" / "report.md").read_text()
    assert "| attention only |" in markdown and "| attention_only" not in markdown
    page = (own.folder / "report" / "index.html").read_text()
    assert "attention only" in page
    curves = [b64decode(text) for text in re.findall(r'data:image/svg\+xml;base64,([^"]+)', page)]
    assert any(b"#994455" in svg for svg in curves)


def test_the_same_settings_are_the_same_run_whatever_the_budget(own):
    again = own.rowsft("run", *own.overrides("bert"), "budget.rows=9", "method=attention_only", "experiment_name=own")
    assert "done already" in again.stderr


def test_it_can_be_planned(own):
    done = own.rowsft("plan", *own.overrides("bert"), "method=attention_only", "--json")
    assert done.returncode == 0, done.stderr
    planned = json.loads(done.stdout)
    assert planned["method"] == "attention_only" and planned["peak_bytes"] > 0
    record = recorded(own)
    assert planned["trainable_parameters"] == record.result.parameters.budget_achieved


WRONG = """
from dataclasses import dataclass

from attention_only import AttentionOnly


@dataclass
class NothingTrained(AttentionOnly):
    def attach(self, model, resolved):
        return super().attach(model, resolved).requires_grad_(False)


@dataclass
class OtherInfo(AttentionOnly):
    info = {"name": "other"}
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("NothingTrained", "method=attention_only: attach left no parameter to train"),
        ("OtherInfo", "wrong_methods.OtherInfo: info is a dict, expected a rowsft.method_info.MethodInfo"),
    ],
)
def test_a_method_that_breaks_its_promises_is_one_line_that_names_it(own, name, message):
    (own.folder / "wrong_methods.py").write_text(WRONG)
    yaml = (HERE / "conf" / "method" / "attention_only.yaml").read_text()
    yaml = yaml.replace("attention_only.AttentionOnly", f"wrong_methods.{name}")
    (own.folder / "conf" / "method" / f"{name}.yaml").write_text(yaml)
    done = own.rowsft("run", *own.overrides("bert"), f"method={name}", "experiment_name=wrong")
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not Store(own.folder / "runs").runs("wrong")
