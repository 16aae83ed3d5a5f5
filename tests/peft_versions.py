"""Runs the contract tests of the tuner against the oldest and the newest peft that pyproject.toml admits.

    python tests/peft_versions.py

Each wheel is downloaded without its dependencies into a temporary folder, which comes first on the path; what is
installed stays as it is. Exits with 1 if a test fails on either version.
"""

import os
import re
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
TESTS = (
    "tests/unit/test_compat.py",
    "tests/unit/test_tuner_register.py",
    "tests/unit/test_tuner_saving.py::test_peft_round_trip",
)


def admitted() -> list[str]:
    """The oldest and the newest released version in pyproject's range."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    wanted = next(each for each in map(Requirement, dependencies) if each.name == "peft")
    listed = _output("-m", "pip", "index", "versions", "peft")
    versions = re.search(r"Available versions: (.*)", listed)[1].split(", ")
    inside = [version for version in versions if version in wanted.specifier]
    return [inside[-1], inside[0]]


def check(version: str) -> bool:
    """Run the tests with this peft; True if they pass."""
    with tempfile.TemporaryDirectory() as folder:
        _output("-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, f"peft=={version}")
        wheel = next(Path(folder).glob("*.whl"))
        zipfile.ZipFile(wheel).extractall(folder)
        wheel.unlink()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((folder, str(ROOT)))}
        found = _output("-c", "import peft; print(peft.__version__, peft.__file__)", env=environment).split()
        assert found[0] == version and found[1].startswith(folder), found
        print(f"peft {version}", flush=True)
        return subprocess.run([sys.executable, "-m", "pytest", *TESTS], cwd=ROOT, env=environment).returncode == 0


def _output(*arguments: str, env: dict[str, str] | None = None) -> str:
    return subprocess.run(
        [sys.executable, *arguments], check=True, stdout=subprocess.PIPE, text=True, env=env, cwd=ROOT
    ).stdout


if __name__ == "__main__":
    sys.exit(not all(check(version) for version in admitted()))
