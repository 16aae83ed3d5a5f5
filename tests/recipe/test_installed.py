"""The wheel in an environment of its own, used from a folder that has nothing to do with the repository."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.whole

ROOT = Path(__file__).parents[2]
# All that a wheel is made of.
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "rowsft", "conf", "baselines", "hydra_plugins")

OWN_METHOD = """\
from dataclasses import dataclass

from rowsft.baselines.lora import Lora


@dataclass
class Mine(Lora):
    name: str = "mine"
"""
OWN_YAML = """\
_target_: mymethods.Mine
name: mine
r: 2
scaling: 2.0
dropout: 0.0
"""
OWN_EXPERIMENT = """\
# @package _global_
defaults:
  - override /method: mine
experiment_name: own
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "copy"
    copy.mkdir()
    # Not in place: what an earlier build left in build/ would end in the wheel, too.
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy)
    pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", folder, copy)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The bin folder of a bare environment with the wheel; what the wheel depends on is looked up where it is now."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip("--python", python, "install", "--no-deps", "--no-index", wheel)
    where = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    # A path file inside a folder that is added this way is not read: the editable rowsft stays out.
    present = {sysconfig.get_paths()[kind] for kind in ("purelib", "platlib")}
    Path(where, "dependencies.pth").write_text("\n".join(sorted(present)) + "\n")
    return folder / "bin"


def pip(*arguments) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=clean_environment(), check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def clean_environment(**more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "ROWSFT"))}
    return {**kept, "HF_HUB_OFFLINE": "1", **more}


def run(program: Path, *arguments: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [program, *arguments],
        cwd=cwd,
        env=clean_environment(**environment),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_the_package_and_hydras_plugins_alone(wheel):
    machine = [str(path).encode() for path in (ROOT, wheel.parent, Path.home() / "x")]
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        told = [name for name in names if any(path.removesuffix(b"x") in archive.read(name) for path in machine)]
    assert {name.split("/")[0] for name in names} == {"rowsft", "hydra_plugins", "rowsft-0.1.0.dist-info"}
    assert told == []
    shipped = [path for folder in ("conf", "baselines") for path in (ROOT / folder).rglob("*.[yp][ay]*")]
    parts = [path for folder in ("rowsft", "hydra_plugins") for path in (ROOT / folder).rglob("*") if path.is_file()]
    wanted = {f"rowsft/{path.relative_to(ROOT)}" for path in shipped} | {str(path.relative_to(ROOT)) for path in parts}
    assert {name for name in wanted if "__pycache__" not in name} <= set(names)


def test_importing_takes_no_torch_and_no_checkout(installed, tmp_path):
    code = (
        "import sys, rowsft, rowsft.cli.main, rowsft.config.compose, rowsft.assets.fetch; from pathlib import Path;"
        "assert 'torch' not in sys.modules;"
        "print(rowsft.__file__); print(rowsft.assets.fetch.cache_folder()); import importlib.util as u;"
        "print(u.find_spec('baselines'), u.find_spec('rowsft.baselines.lora') is not None)"
    )
    where, assets, found = run(installed / "python", "-c", code, cwd=tmp_path, XDG_CACHE_HOME="/xdg").splitlines()
    assert Path(where).is_relative_to(installed.parent)
    assert assets == "/xdg/rowsft/assets"
    assert found == "None True"


@pytest.mark.slow
def test_every_command_works_from_an_unrelated_folder(installed, workshop, tmp_path):
    def rowsft(*arguments: str) -> str:
        return run(installed / "rowsft", *arguments, cwd=tmp_path, OMP_NUM_THREADS="1")

    assert "examples:" in rowsft("--help")
    assert "lora on" in rowsft("plan", "model=llama3_8b", "method=lora")
    here = [text for text in workshop.overrides("bert") if not text.startswith("store=")]
    done = rowsft("run", *here, "method=row_sft", "experiment_name=wheel")
    assert done.splitlines()[-1].startswith("done: run ")
    rowsft("report", "--experiment", "wheel")
    assert {"index.html", "report.md"} <= {path.name for path in (tmp_path / "reports" / "wheel").iterdir()}

    # A method of one's own, in a folder that has no fork of anything.
    (tmp_path / "mymethods.py").write_text(OWN_METHOD)
    for name, text in (("method/mine", OWN_YAML), ("experiment/own", OWN_EXPERIMENT)):
        (tmp_path / "conf" / f"{name}.yaml").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "conf" / f"{name}.yaml").write_text(text)
    assert " mine, " in rowsft("run", "--help")
    swept = rowsft("sweep", "experiment=own", *here, "method=mine,lora")
    assert swept.splitlines()[-1] == "2 jobs: 2 done, 0 not"
    listed = json.loads(rowsft("runs", "--experiment", "own", "--json"))
    assert sorted(entry["method"] for entry in listed) == ["lora", "mine"]
    rowsft("report", "--experiment", "own")
    assert "| mine" in (tmp_path / "reports" / "own" / "report.md").read_text()
