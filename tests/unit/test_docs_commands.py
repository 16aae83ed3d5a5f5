"""What README.md, CONTRIBUTING.md and docs/ tell to type: commands parse and compose, targets exist, Python runs."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from tiny import causal_batch, tiny_llama

from rowsft.cli.arguments import parsed_arguments
from rowsft.cli.init import start
from rowsft.cli.main import parser_of
from rowsft.config.compose import compose
from rowsft.config.overrides import swept_values

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"(?:\$ )?((?:rowsft|make|python) .*)")


def commands_of(page: Path) -> list[str]:
    """The page's commands: lines of indented and fenced blocks, and code inside of sentences."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    # docs/errors.md: test_docs_errors.py runs what stands after $.
    kinds = ("", "bash", "console") if page.stem != "errors" else ()
    blocks = "\n".join(block for kind, block in FENCED.findall(text) if kind in kinds)
    rest = FENCED.sub("", text)
    indented = re.findall(r"^    +(.*)$", rest, re.MULTILINE)
    prose = re.sub(r"^    .*$", "", rest, flags=re.MULTILINE)
    spans = [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose)]
    parts = [
        part.strip() for line in [*blocks.splitlines(), *indented, *spans] for part in re.split(r" && | +# ", line)
    ]
    return [" ".join(match[1].split()) for part in parts if (match := COMMAND.fullmatch(part))]


COMMANDS = [(page.relative_to(ROOT).as_posix(), command) for page in PAGES for command in commands_of(page)]
ROWSFT = sorted({command for _, command in COMMANDS if command.startswith("rowsft ")})


def words_of(command: str) -> list[str]:
    """The words after `rowsft`, without marks of what is optional ([--json]) or elided (task=..., ...)."""
    plain = re.sub(r"\[(--[^\]]*)\]", r"\1", command)
    return [word for word in shlex.split(plain)[1:] if not word.endswith("...")]


def jobs(overrides: list[str]) -> list[list[str]]:
    """Overrides of single runs in which every value of every swept key occurs; of numbers, the first and the last."""
    swept = []
    for word in overrides:
        key, values = swept_values(word)
        ends = [values[0], values[-1]] if len(values) > 2 and re.fullmatch(r"[\d.]+", "".join(values)) else values
        swept.append([f"{key}={value}" for value in ends] if len(values) > 1 else [word])
    return [[words[min(job, len(words) - 1)] for words in swept] for job in range(max(map(len, swept), default=1))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What `rowsft init` writes, with the examples of docs/extending.md: commands on files of one's own go there."""
    folder = tmp_path_factory.mktemp("commands")
    start(folder)
    shutil.copytree(ROOT / "tests/extending/conf", folder / "conf", dirs_exist_ok=True)
    for module in (ROOT / "tests/extending").glob("[!t]*.py"):
        shutil.copy(module, folder)
    return folder


def test_every_page_is_read():
    pages = {page for page, _ in COMMANDS}
    assert {"README.md", "CONTRIBUTING.md", "docs/usage.md", "docs/planning.md", "docs/results.md"} <= pages
    assert {command.split()[1] for command in ROWSFT} >= {
        "run",
        "sweep",
        "plan",
        "report",
        "runs",
        "compare",
        "export",
        "init",
    }


@pytest.mark.parametrize("command", ROWSFT)
def test_commands_are_what_the_command_line_reads(command, folder, monkeypatch):
    monkeypatch.chdir(folder)
    words = words_of(command)
    if "--help" in words or len(words) == 1:
        # COMMAND stands for any. A name alone, as in "what `rowsft tune` does", is no whole command.
        with pytest.raises(SystemExit) as ended:
            parsed_arguments(parser_of(None), ["--help"] if words[0] == "COMMAND" else [words[0], "--help"])
        assert ended.value.code == 0
        return
    parsed = parsed_arguments(parser_of(None), words)
    if parsed.command in ("run", "sweep", "plan"):
        swept = [parsed.sweep] if getattr(parsed, "sweep", None) else []
        for overrides in jobs([*parsed.overrides, *swept]):
            assert compose(overrides).method.name


def test_make_targets_and_their_variables_exist():
    targets = set(re.findall(r"^([a-z0-9-]+):", MAKEFILE, re.MULTILINE))
    for page, command in COMMANDS:
        name, *words = command.split()
        for word in words if name == "make" else ():
            variable, sign, _ = word.partition("=")
            known = (
                re.search(rf"\$\([^)]*\b{variable}\b|^{variable} \?=", MAKEFILE, re.MULTILINE)
                if sign
                else word in targets
            )
            assert known, f"{page}: {command}"


def test_python_scripts_exist():
    for page, command in COMMANDS:
        if command.startswith("python ") and not command.startswith("python -m"):
            assert (ROOT / command.split()[1]).is_file(), f"{page}: {command}"


@pytest.mark.parametrize(
    # test_extending_*.py and test_load_runs.py run what those two pages have.
    "page",
    [page for page in PAGES if "```python" in page.read_text() and page.stem not in ("extending", "records")],
)
def test_python_runs(page, tmp_path, monkeypatch):
    """A page's blocks build on each other; each finds a base model that nothing has wrapped yet, and batches for it."""
    monkeypatch.chdir(tmp_path)
    names = {"batches": [causal_batch(seed=seed) for seed in (1, 2)]}
    for kind, block in FENCED.findall(page.read_text(encoding="utf-8")):
        if kind == "python":
            names["base"] = tiny_llama(hidden_size=128, intermediate_size=256)
            exec(block, names)
    assert names["model"].peft_config["default"].peft_type.value == "ROW_SFT"
    assert (tmp_path / "adapter/adapter_model.safetensors").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files_of_the_repository(page):
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", text):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_plan_in_the_readme_is_the_end_of_the_one_that_stands_whole():
    whole = (ROOT / "docs/planning.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^    \$ (rowsft plan .*)$", readme, re.MULTILINE)
    block = readme[readme.index(command) :].split("\n\n")[0].splitlines()[1:]
    assert command in whole and len(block) > 10
    for line in block:
        assert line[4:] == "..." or line[4:] in whole
