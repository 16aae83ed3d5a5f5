"""What README.md tells a reader to type: every command composes, every make target exists, the Python runs."""

import re
import shlex
from pathlib import Path

import pytest
from tiny import causal_batch, tiny_llama

from rowsft.cli.starter import start
from rowsft.config.compose import compose

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = "\n".join(line[4:] for line in README.splitlines() if line.startswith("    ")).replace("\\\n", " ")
COMMANDS = [
    line.split("#")[0].strip()
    for line in [*BLOCKS.splitlines(), *re.findall(r"`((?:rowsft|make)[^`]*)`", README)]
    if re.match(r"(rowsft|make) ", line)
]


def overrides(command: str) -> list[str]:
    """The command's overrides: an elided value (task=...) is left out, of a swept one the first is taken."""
    words = [word for word in shlex.split(command)[2:] if "=" in word and not word.endswith("=...")]
    return [word if "{" in word else word.split(",")[0] for word in words]


@pytest.mark.parametrize("command", [line for line in COMMANDS if re.match(r"rowsft (run|sweep) \S*=", line)])
def test_commands_compose(command, tmp_path, monkeypatch):
    # The commands on configurations of one's own are typed in the folder that `rowsft init` has made.
    start(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert compose(overrides(command)).method.name


def test_make_targets_exist():
    named = {line.split()[1] for line in COMMANDS if line.startswith("make ")}
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"quickstart", "demo", "test"} <= named <= targets


def test_python_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {"batches": [causal_batch(seed=seed) for seed in (1, 2)]}
    # The paragraphs are alternatives: each gets a base model of its own.
    for paragraph in code.replace("rows=32", "rows=4").split("\n\n"):
        names["base"] = tiny_llama()
        exec(paragraph, names)
    assert names["model"].peft_config["default"].peft_type.value == "ROW_SFT"
    assert {name.rpartition(".")[2] for name in names["scores"]} >= {"q_proj", "down_proj"}
