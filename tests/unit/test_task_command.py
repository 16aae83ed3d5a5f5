"""`rowsft task`: what is printed, what a program reads, and what is refused."""

import io
import json
import re

import pytest
from rich.console import Console
from task_tools import bpe
from tiny_workshop import Workshop, build_workshop

from rowsft import config_folders
from rowsft.cli.main import main
from rowsft.cli.task_text import show_inspection
from rowsft.tasks.inspection import inspect
from rowsft.tasks.prompt_response import PromptResponse


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Workshop:
    return build_workshop(tmp_path_factory.mktemp("workshop"))


def ended(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code


def own_model(workshop: Workshop, family: str = "llama") -> str:
    return f"model.source={workshop.folder / 'models' / family}"


def pairs_file(path, pairs: list[tuple[str, str]]) -> str:
    path.write_text("".join(json.dumps({"prompt": prompt, "response": response}) + "\n" for prompt, response in pairs))
    return str(path)


def test_list_names_every_task_with_a_line(capsys):
    assert ended(["task", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == config_folders.names("task")
    assert all(len(line.split()) > 3 and "@package" not in line for line in lines)
    assert ended(["task", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == set(config_folders.names("task"))


def test_show_marks_loss_special_tokens_and_blanks_in_plain_text(workshop, tmp_path, capsys):
    path = pairs_file(tmp_path / "pairs.jsonl", [(f"w1 w{n}", f"w{n + 1} w9") for n in range(2, 12)])
    command = ["task", "show", "prompt_response", f"task.data.path={path}", own_model(workshop), "--examples", "1"]
    assert ended(command) == 0
    printed = capsys.readouterr().out
    assert len(re.findall(r"^  w1\|·w\d+⟦·w\d+\|·w9\|‹</s>›⟧$", printed, re.MULTILINE)) == 3
    assert "overlap between splits: none" in printed
    assert ended([*command, "--split", "test"]) == 0
    assert capsys.readouterr().out.count("⟦") == 1


def test_show_colours_the_loss_in_a_terminal(tmp_path):
    train = pairs_file(tmp_path / "train.jsonl", [("the cat", "the dog")])
    files = {"train_path": train, "validation_path": train, "test_path": train}
    found = inspect(PromptResponse("mine", 64, files, "{prompt}", " {response}"), bpe())
    output = io.StringIO()
    terminal = Console(file=output, force_terminal=True, color_system="standard", width=100, no_color=False)
    show_inspection(found, "mine", terminal)
    assert "⟦" not in output.getvalue() and "\x1b[1;30;42m" in output.getvalue()
    # Colours that nobody sees are no marks.
    output.truncate(0)
    show_inspection(found, "mine", Console(file=output, force_terminal=True, color_system="standard", no_color=True))
    assert "⟦" in output.getvalue() and "42m" not in output.getvalue()


def test_a_leak_of_own_data_is_reported_with_ids(workshop, tmp_path, capsys):
    train = pairs_file(tmp_path / "train.jsonl", [("w1 w2", "w3"), ("w4 w5", "w6")])
    test = pairs_file(tmp_path / "test.jsonl", [("w7", "w8"), ("w4 w5", "w9")])
    data = [f"task.data.{name}_path={path}" for name, path in (("train", train), ("validation", test), ("test", test))]
    command = ["task", "show", "prompt_response", *data, own_model(workshop)]
    assert ended(command) == 0
    printed = capsys.readouterr().out
    assert "leak: 1 of 2 test examples are in train too, the model reads the same: test-1 = train-1" in printed
    assert ended([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["pairs"] for one in found["overlaps"] if one["later"] == "test" and one["earlier"] == "train"] == [
        [["test-1", "train-1"]],
        [["test-1", "train-1"]],
    ]
    assert found["splits"]["train"]["lengths"]["tokens"] == {"p50": 4, "p95": 4, "max": 4}


def test_a_leak_of_a_packaged_task_is_refused(workshop, tmp_path, monkeypatch, capsys):
    path = pairs_file(tmp_path / "pairs.jsonl", [("w1 w2", "w3")])
    (tmp_path / "packaged.py").write_text(
        "from rowsft.tasks.prompt_response import PromptResponse\n\n\n"
        "class Packaged(PromptResponse):\n"
        "    def _facts(self):\n"
        "        return {**super()._facts(), 'package_sha256': '0'}\n"
    )
    (tmp_path / "conf/task").mkdir(parents=True)
    data = ", ".join(f"{name}_path: {path}" for name in ("train", "validation", "test"))
    (tmp_path / "conf/task/leaking.yaml").write_text(
        f"_target_: packaged.Packaged\nname: leaking\nmax_length: 64\ndata: {{{data}}}\nprompt: '{{prompt}}'\n"
        "response: '{response}'\n"
    )
    monkeypatch.chdir(tmp_path)
    assert ended(["task", "show", "leaking", own_model(workshop)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "rowsft: error: task=leaking: its data are packaged, and 1 examples of validation are in train"
    )
    assert "validation-0, train-0" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nosuch"], "task=nosuch"),
        (["sentiment", "task=social_iqa"], "names another task too"),
        (["sentiment", "--examples", "-1"], "expected a whole number of examples"),
        (["sentiment", "--split", "dev"], "invalid choice"),
        (["prompt_response", "model.source=./nowhere", "task.data.path=x.jsonl"], "no such folder"),
        (["prompt_response", "task.data.path=nowhere.jsonl"], "no such file"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    assert ended(["task", "show", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_text_that_holds_a_secret_is_masked(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "thecatandthedog")
    path = pairs_file(tmp_path / "pairs.jsonl", [("my key is thecatandthedog", "the cat")])
    files = {"train_path": path, "validation_path": path, "test_path": path}
    output = io.StringIO()
    task = PromptResponse("mine", 64, files, "{prompt}", " {response}")
    show_inspection(inspect(task, bpe()), "mine", Console(file=output, width=100))
    printed = output.getvalue().replace("|", "")
    assert "thecatandthedog" not in printed and printed.count("***") == 3
