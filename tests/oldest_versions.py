"""Runs the tuner's and the benchmarks' tests on the oldest libraries of the four below that pyproject.toml admits.

    python tests/oldest_versions.py            in a temporary virtual environment
    python tests/oldest_versions.py FOLDER     in one that stays there: the second time nothing is installed

torch's build on PyPI is CUDA's: with its libraries some 3 GB to download and 6 to unpack. A smaller one comes from
torch's own index: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu. Exits with 1 if a test fails.
"""

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
OLDEST = ("torch", "transformers", "peft", "accelerate")
TESTS = (*sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/unit/test_tuner_*.py")),)
TESTS += (
    "tests/unit/test_compat.py",
    "tests/unit/test_benchmark.py",
    "tests/unit/test_shira.py",
    "tests/unit/test_methods.py",
    "tests/distributed",
)


def dependencies() -> list[Requirement]:
    """What pyproject.toml asks for, the test tools among it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    return [Requirement(line) for line in lines]


def oldest(wanted: Requirement) -> str:
    """The oldest released version in the range."""
    listed = _output(sys.executable, "-m", "pip", "index", "versions", wanted.name)
    versions = re.search(r"Available versions: (.*)", listed)[1].split(", ")
    return [version for version in versions if version in wanted.specifier][-1]


def install(folder: Path) -> Path:
    """A virtual environment with those versions and whatever pip finds to go with them; its Python."""
    python = folder / "bin" / "python"
    if not python.exists():
        pins = [f"{each.name}=={oldest(each)}" for each in dependencies() if each.name in OLDEST]
        rest = [str(each) for each in dependencies() if each.name not in OLDEST]
        print(f"installing {', '.join(pins)}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *pins, *rest], check=True)
    return python


def check(folder: Path) -> bool:
    """Run the tests there; True if they pass."""
    python = install(folder)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    names = "import peft, torch, transformers as t; print(torch.__version__, t.__version__, peft.__version__)"
    print(f"torch, transformers, peft: {_output(str(python), '-W', 'ignore', '-c', names)}", flush=True)
    return subprocess.run([str(python), "-m", "pytest", *TESTS], cwd=ROOT, env=environment).returncode == 0


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout


def main() -> int:
    if sys.argv[1:]:
        return int(not check(Path(sys.argv[1])))
    with tempfile.TemporaryDirectory() as folder:
        return int(not check(Path(folder) / "oldest"))


if __name__ == "__main__":
    sys.exit(main())
