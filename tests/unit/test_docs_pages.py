"""The parts of the documentation that are made from other files, and the files beside it that tools read."""

import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs/hooks"))
import config_reference  # noqa: E402
import examples  # noqa: E402

CONF = ROOT / "conf"
PAGE = config_reference.reference(CONF)
FILES = sorted(CONF.rglob("*.yaml"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def flat(mapping: dict, prefix: str) -> dict[str, object]:
    """Full name -> value of every key; a mapping that is written over several lines has its own keys, too."""
    found = {}
    for key, value in mapping.items():
        name = f"{prefix}.{key}" if prefix else key
        found[name] = value
        if isinstance(value, dict):
            found |= flat(value, name)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(CONF).as_posix())
def test_the_configuration_reference_has_every_key_with_its_default(path):
    group = path.relative_to(CONF).parts[0] if path.parent != CONF else ""
    text = path.read_text(encoding="utf-8")
    if group in config_reference.WHOLE:
        assert f"```yaml\n{text.rstrip()}\n```" in PAGE
        return
    values = {key: value for key, value in yaml.safe_load(text).items() if key not in config_reference.APART}
    known = {key.name: key for key in config_reference.keys(CONF, path)}
    named = flat(values, group)
    for name, value in named.items():
        if name not in known:
            # A key inside of {...}: the default of the key around it shows it.
            around = max((key for key in known if name.startswith(f"{key}.")), key=len)
            assert known[around].default.startswith("{")
            continue
        assert f"`{name}`" in PAGE
        if not isinstance(value, dict | list):
            shown = known[name].default
            assert str(value) in shown or yaml.safe_load(shown) == value
    assert set(known) <= set(named)


def test_every_file_of_the_reference_says_what_it_is_and_every_row_what_its_key_does():
    sections = re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]
    assert len(sections) == len(FILES) - 1
    for section in sections:
        name, place, about = section.split("\n\n")[:3]
        assert place.startswith("`conf/"), name
        assert about.strip() and not about.startswith("|"), name
    assert not re.search(r"\| *\|$", PAGE, re.MULTILINE)


def test_extending_shows_the_examples_as_they_are():
    page = examples.PAGE.read_text(encoding="utf-8")
    assert page == examples.filled(page), "run python docs/hooks/examples.py"
    files = [path for path in (ROOT / "tests/extending").rglob("*.*") if path.suffix in (".py", ".yaml")]
    shown = {match["file"] for match in examples.BLOCK.finditer(page)}
    assert shown == {path.relative_to(ROOT).as_posix() for path in files if not path.name.startswith("test_")}


def test_make_help_lists_what_contributing_names():
    helped = set(re.findall(r"^([a-z0-9-]+):.*##", MAKEFILE, re.MULTILINE))
    assert {"docs", "types", "lint", "test"} <= helped


def test_ci_runs_what_every_change_must_pass():
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]
    commands = [step.get("run") for job in jobs.values() for step in job["steps"]]
    assert {"make lint", "make types", "make test", "make docs"} <= set(commands)
    versions = jobs["checks"]["strategy"]["matrix"]["python"]
    lowest = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert versions == ["3.11", "3.12", "3.13"] and lowest == f">={versions[0]}"


def test_the_citation_names_this_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["version"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    (paper,) = citation["references"]
    assert "2502.11439" in paper["url"]
    assert [author["family-names"] for author in paper["authors"]] == ["Li", "Bhaskara"]


def test_the_site_asks_nothing_of_other_machines():
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert settings["theme"]["font"] is False
    assert "extra_javascript" not in settings and "analytics" not in settings["extra"]
