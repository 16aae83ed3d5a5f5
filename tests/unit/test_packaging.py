"""What pyproject.toml promises of the package."""

import ast
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What is imported on demand may be in an extra for users.
EXTRAS = [
    text for name, texts in PROJECT["optional-dependencies"].items() if name not in ("dev", "docs") for text in texts
]
DECLARED = {canonicalize_name(Requirement(text).name) for text in [*PROJECT["dependencies"], *EXTRAS]}


def imported() -> set[str]:
    """The top-level names of other packages that the package imports, anywhere in a file."""
    found = set()
    for folder in ("rowsft", "baselines", "hydra_plugins"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    found |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names - {"rowsft", "hydra_plugins"}


def test_whatever_is_imported_is_declared():
    owners = packages_distributions()
    undeclared = {
        name: owners.get(name)
        for name in imported()
        if not DECLARED & {canonicalize_name(owner) for owner in owners.get(name, [name])}
    }
    assert {"yaml", "platformdirs", "torch"} <= imported()
    assert undeclared == {}


def test_every_dependency_is_pinned_within_its_range():
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines if line)}
    wanted = [Requirement(text) for text in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dashboards"]]]
    assert [each.name for each in wanted if pins.get(canonicalize_name(each.name)) not in each.specifier] == []
