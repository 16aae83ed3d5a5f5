"""Configurations of a user's own beside the shipped ones, and the folder that `rowsft init` writes to start from."""

import os
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from refusals import refusal

from rowsft import config_folders
from rowsft.assets import fetch
from rowsft.cli.main import main
from rowsft.config.compose import compose
from rowsft.config.compose_many import ManyComposer
from rowsft.config.names import group_names, options
from rowsft.config.run_spec import run_spec
from rowsft.config_folders import SHIPPED
from rowsft.export.command import command
from rowsft.methods.base import method_of
from rowsft.report.groups import _named_source, model_label
from rowsft.store.ignored import ignored

METHOD = """\
_target_: own_methods_of_a_test.Mine
name: mine
r: 2
scaling: 2.0
dropout: 0.0
ignores: [trainer.warm_head]
"""
MODULE = """\
from dataclasses import dataclass

from rowsft.baselines.lora import Lora


@dataclass
class Mine(Lora):
    name: str = "mine"
    strength: float = 1.0
"""
FILES = {
    "method/mine": METHOD,
    "method/sub/inner": METHOD.replace("name: mine", "name: inner"),
    # A file may build on a shipped one.
    "method/high": "defaults: [lora, _self_]\nname: high\nr: 64\n",
    "model/mine": "defaults: [bert_base, _self_]\nname: mine\nsource: ./models/mine\n",
    "experiment/own": (
        "# @package _global_\ndefaults: [{override /method: mine}, {override /model: mine}]\nexperiment_name: own\n"
    ),
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A working folder with conf/ and a module beside it."""
    write(tmp_path / "conf", FILES)
    (tmp_path / "own_methods_of_a_test.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("own_methods_of_a_test", None)


def write(folder: Path, files: dict[str, str | bytes]) -> None:
    for name, text in files.items():
        path = folder / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())


def test_own_files_stand_beside_the_shipped_ones(project, capsys):
    assert {"mine", "high", "sub/inner", "lora", "row_sft"} <= set(options("method"))
    assert "method/sub" in group_names()
    config = compose(["experiment=own", "task=sentiment"])
    assert (config.method.name, config.model.name, config.model.source) == ("mine", "mine", "./models/mine")
    assert config.ignores == ["trainer.warm_head"]
    assert type(method_of(config.method)).__name__ == "Mine"
    assert compose(["method=high"]).method.r == 64
    assert compose(["+method.strength=2", "method=mine"]).method.strength == 2
    assert "mine" in refusal(compose, ["method=mien"])
    misspelt = refusal(compose, ["method=mine", "+method.strenght=2"])
    assert "nothing reads this key; did you mean method.strength?" in misspelt
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    shown = capsys.readouterr().out
    assert (
        {"high", "lora", "mine", "none"} <= set(re.split(r"[,\s]+", shown))
        and "sub/inner" in shown
        and str(project / "conf") in shown
    )


def test_they_are_gone_in_another_folder(project, monkeypatch):
    compose(["method=mine"])
    (project / "elsewhere").mkdir()
    monkeypatch.chdir(project / "elsewhere")
    assert "no such method" in refusal(compose, ["method=mine"]) and "mine" not in options("method")


def test_another_folder_may_be_named(project, monkeypatch, capsys):
    (project / "elsewhere").mkdir()
    monkeypatch.chdir(project / "elsewhere")
    before = dict(os.environ)
    for option in (["--config-dir", "../conf"], [f"--config-dir={project / 'conf'}"]):
        with pytest.raises(SystemExit) as ended:
            main(["run", "experiment=own", *option, "task=sentiment", "model=minilm", "--show-config"])
        assert ended.value.code == 0
        assert "own_methods_of_a_test.Mine" in capsys.readouterr().out
    assert dict(os.environ) == before
    monkeypatch.setenv(config_folders.VARIABLE, str(project / "conf"))
    assert compose(["method=mine"]).method.name == "mine"


@pytest.mark.parametrize(("folder", "said"), [("absent", "no such folder"), ("", "empty"), ("x" * 5000, "xxx")])
def test_a_named_folder_that_is_not_there_is_one_line(project, capsys, folder, said):
    with pytest.raises(SystemExit) as ended:
        main(["run", "--config-dir", folder])
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and len(lines) == 1
    assert lines[0].startswith("rowsft: error: --config-dir") and said in lines[0]


@pytest.mark.parametrize("name", ["method/lora", "trainer/default", "config"])
def test_a_name_means_one_file(project, name):
    shipped = (SHIPPED / f"{name}.yaml").read_bytes()
    write(project / "conf", {name: shipped})
    assert compose(["method=mine"]).method.name == "mine", "a copy changes nothing"
    other = project / "other" / "conf"
    write(other, {name: shipped + b"# edited\n"})
    with config_folders.chosen(str(other)):
        said = refusal(compose, ["method=dora"])
    assert f"{other / name}.yaml: has the name of a file that comes with rowsft" in said


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("method/broken", "name: [a\nr: 2\n", "line 2: no YAML"),
        ("method/broken", "- a\n", "is no mapping"),
        ("method/broken", "", "is no mapping"),
        ("method/broken", b"\xff\xfe\x00", "utf-8"),
        ("experiment/broken", "trainer: {steps: 3}\n", "begin it with the line # @package _global_"),
        ("experiment/broken", "# @package _global_\ndefaults: [{override /model: gone}]\n", "model/gone: no such file"),
        ("experiment/broken", "# @package _global_\ntrainer: {stepz: 3}\n", "did you mean trainer.steps?"),
        ("method/broken", "name: broken\n", "method._target_"),
        ("model/broken", "defaults: [bert_bse, _self_]\n", "model/bert_bse: no such file; known: bert_base, "),
        ("model/broken", "defaults: [bert_base, _self_]\n5: x\n", "model.5: nothing reads this key"),
        ("model/broken", "defaults: [broken, _self_]\n", "model=broken: nested too deep"),
    ],
)
def test_a_broken_file_of_ones_own_is_one_line_that_names_it(project, name, text, said):
    write(project / "conf", {name: text})
    assert compose(["method=mine"]).method.name == "mine", "a file that is not chosen disturbs nothing"
    message = refusal(compose, [f"{name.split('/')[0]}=broken"])
    assert said in message


def test_a_value_that_a_file_of_ones_own_leaves_open_is_given_on_the_command_line(project, monkeypatch):
    monkeypatch.delenv("A_VARIABLE_OF_NOBODY", raising=False)
    files = {
        "method/open": METHOD.replace("r: 2", "r: ???"),
        "task/open": "defaults: [text_classification, _self_]\ndata:\n  path: ???\n",
        "model/open": "defaults: [bert_base, _self_]\nname: open\nsource: ${oc.env:A_VARIABLE_OF_NOBODY}\n",
    }
    write(project / "conf", files)
    assert refusal(compose, ["method=open"]).startswith("method.r: no value given")
    config = compose(
        ["method=open", "method.r=3", "task=open", "task.data.path=mine.csv", "model=open", "model.source=x"]
    )
    assert (config.method.r, config.task.data.path, config.model.source) == (3, "mine.csv", "x")
    assert "no such key in method; did you mean method.r?" in refusal(compose, ["method=open", "method.rr=3"])
    assert "nothing reads this key" in refusal(compose, ["task=open", "task.data.path=x", "+task.data.pth=x"])
    many = ManyComposer().compose(["method=open", "method.r=3", "seed=4"]) or {}
    assert many in ({}, OmegaConf.to_container(compose(["method=open", "method.r=3", "seed=4"])))


@pytest.mark.parametrize("rule", ["budgt", "trainer.warm_hed", "trainer.warm_head, model.nam if method.r", "1"])
def test_a_rule_of_ignores_names_a_key_that_there_is(project, rule):
    write(project / "conf", {"method/rule": METHOD.replace("trainer.warm_head", f'"{rule}"')})
    assert "no such key" in refusal(compose, ["method=rule"])


def test_a_file_that_ends_in_yml_is_one_line(project):
    (project / "conf" / "method" / "short.yml").write_text(METHOD)
    assert f"{project / 'conf/method/short.yml'}: rename it to short.yaml" in refusal(compose, ["method=short"])


def test_a_group_of_ones_own_has_no_reader(project):
    write(project / "conf", {"data/mine": "path: x\n"})
    for text in ("data=mine", "+data=mine"):
        assert "data: nothing reads this group; known: budget, " in refusal(compose, [text])


def test_a_class_that_its_module_lacks_is_named(project):
    write(project / "conf", {"method/absent": METHOD.replace(".Mine", ".Absent")})
    said = refusal(method_of, compose(["method=absent"]).method)
    assert "own_methods_of_a_test has no Absent" in said and "package)" not in said


def test_a_folder_that_the_environment_names_is_not_blamed_on_the_command(project, monkeypatch):
    monkeypatch.setenv(config_folders.VARIABLE, "absent")
    assert refusal(compose, []).startswith("ROWSFT_CONFIG_DIR=absent: no such folder")


def test_a_sweeps_templates_see_them(project):
    composer = ManyComposer()
    for overrides in (["experiment=own", "seed=3", "method.r=4"], ["experiment=own", "method=high", "seed=4"]):
        assert composer.compose(overrides) == OmegaConf.to_container(compose(overrides))


def test_what_a_recorded_method_ignores_is_looked_up_there(project):
    old = {"method": {"_target_": "own_methods_of_a_test.Mine", "name": "mine"}}
    assert ignored(old) == ["trainer.warm_head"]
    write(project / "conf", {"method/broken": "name: [a\n"})
    assert ignored({"method": {"_target_": "baselines.none.Untrained", "name": "none"}})


def test_reports_and_model_cards_know_them(project):
    assert _named_source("mine") == "./models/mine" and _named_source("minilm") == "package:minilm"
    write(project / "conf", {"model/own_name": "name: own_name\nsource: ./models/mine\n"})
    shown = {"own_name": "./models/mine", "minilm": "./models/mine"}
    labels = [model_label(SimpleNamespace(config={"model": {"name": n, "source": s}})) for n, s in shown.items()]
    assert labels == ["own_name", "mine"], "a folder's name where these are not the named model's own weights"
    config = OmegaConf.to_container(compose(["experiment=own", "method=high", "method.r=3"]))
    again = shlex.split(command(config))
    assert "method=high" in again and "model=mine" in again
    assert run_spec(compose(again[2:])).run_id == run_spec(config).run_id


def test_baselines_are_found_by_the_name_that_runs_record():
    recorded, imported = (
        method_of(OmegaConf.create({"_target_": name, "name": "lora"}))
        for name in ("baselines.lora.Lora", "rowsft.baselines.lora.Lora")
    )
    assert type(recorded) is type(imported) and type(recorded).__module__ == "rowsft.baselines.lora"


def test_assets_lie_in_the_checkout_or_with_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("ROWSFT_ASSETS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert fetch.cache_folder() == Path(__file__).parents[2] / ".assets"
    monkeypatch.setattr(fetch, "ASSETS_OF_CHECKOUT", None)
    assert fetch.cache_folder() == tmp_path / "cache" / "rowsft" / "assets"
    monkeypatch.setenv("ROWSFT_ASSETS", str(tmp_path / "mine"))
    assert fetch.cache_folder() == tmp_path / "mine"


def test_what_init_writes_composes(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "new" / "project"
    with pytest.raises(SystemExit) as ended:
        main(["init", str(folder)])
    assert ended.value.code == 0
    assert (folder / ".gitignore").is_file() and (folder / "README.md").is_file()
    monkeypatch.chdir(folder)
    config = compose(["experiment=first", "method=lora"])
    assert (config.model.name, config.experiment_name) == ("mine", "first")
    # Each command that its README shows.
    shown = [
        line.split() for line in (folder / "README.md").read_text().splitlines() if line.startswith("       rowsft")
    ]
    assert {words[1] for words in shown} == {"run", "plan", "sweep", "report"}
    for words in shown:
        if words[1] != "report":
            compose([word for word in words[2:] if "=" in word])


@pytest.mark.parametrize("name", ["README.md", ".gitignore", "conf/model/mine.yaml"])
def test_init_overwrites_nothing(tmp_path, capsys, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(SystemExit) as ended:
        main(["init", str(tmp_path)])
    assert ended.value.code == 2
    assert f"{tmp_path / name}: is there already" in capsys.readouterr().err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]
    assert (tmp_path / name).read_text() == "mine"


def test_init_where_a_file_stands_for_a_folder_writes_nothing(tmp_path, capsys):
    (tmp_path / "conf").write_text("")
    with pytest.raises(SystemExit) as ended:
        main(["init", str(tmp_path)])
    assert ended.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["conf"]
