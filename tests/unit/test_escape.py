"""Hostile names against every target: what is written reads back as text, and as nothing else."""

import csv
import io
import re
import shutil
from html.parser import HTMLParser

import pytest
import yaml
from markdown_it import MarkdownIt
from record_mutants import mutant, put, whole
from rich.console import Console

from rowsft import report
from rowsft.cli.main import main
from rowsft.output import escape
from rowsft.report import listing, memory, plots, tuning
from rowsft.report.compare import compare
from rowsft.report.compare import terminal as comparison
from rowsft.report.markdown import markdown
from rowsft.report.page import page
from rowsft.store import Store
from rowsft.store.files import write_csv

HOSTILE = {
    "html": "<script>alert(1)</script>",
    "html attribute": "\" onmouseover='x' <img src=x onerror=y>",
    "entity": "&lt;b&gt; &#60; & co",
    "lines": "one\ntwo\r\nthree\n\n# four",
    "bar": "a | b || c",
    "ticks": "`a` ``` `` x",
    "link": "[a](http://evil.example) ![b](c) [d]: e",
    "emphasis": "*a* **b** _c_ __d__ ~~e~~ row_sft",
    "list": "- a",
    "ordered": "1. a",
    "quotation": "> a",
    "heading": "# a",
    "rule": "---",
    "math": "$x$ $$y$$ \\frac{1}{2} $\\undefined{",
    "ansi": "\x1b[31mred\x1b[0m \x07\x00",
    "c1": "\x9b31m\x85",
    "directions": "abc\u202egnp.exe\u2066",
    "unseen": "a\u200bb\ufeffc\u2028d",
    "formula": "=cmd|' /C calc'!A0",
    "plus": "+1+2",
    "at": "@SUM(A1)",
    "minus": "-2+3",
    "tab": "\t=1+1",
    "full width": "\uff1d1+1",
    "markup": "[bold]x[/bold] [/x] [link=http://e]y[/link]",
    "backslashes": "a\\ b\\\\",
    "latex": "100% of $5 & #1_{x}^2 ~ \\input{/etc/passwd}",
    "braces": "{{ 7 * 7 }} {% raw %}",
    "quotes": 'it\'s "quoted"',
    "unicode": "naïve 日本語 emoji 🙂",
    "wide": "日本語" * 40,
}
UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
hostile = pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)


@hostile
def test_terminal_text_is_one_line_without_what_cannot_be_seen(name):
    shown = escape.terminal(name)
    assert not UNSEEN.search(shown) and escape.terminal(shown) == shown
    assert (shown == name) == (not UNSEEN.search(name))


@hostile
@pytest.mark.parametrize("form", ["{}", "| {} | x |\n|---|---|\n| 1 | 2 |", "- {}", "## {}", "**a**: {} (b)"])
def test_markdown_gives_back_the_text(name, form):
    """Read by another program: the text alone comes out, no link, no HTML, no emphasis, nothing cut off."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(form.format(escape.markdown(name)))
    inline = [child for token in tokens if token.type == "inline" for child in token.children]
    kinds = {child.type for child in inline} - {"text", "text_special", "strong_open", "strong_close"}
    assert not kinds, kinds
    allowed = {
        "{}": "paragraph",
        "|": "table thead tr th tbody td",
        "-": "bullet_list list_item paragraph",
        "#": "heading",
    }
    blocks = {token.type.rsplit("_", 1)[0] for token in tokens} - {"inline"}
    assert blocks <= set(allowed.get(form[0] if form != "{}" else form, "paragraph").split())
    first = next(token for token in tokens if token.type == "inline")
    read = "".join(child.content for child in first.children)
    wanted = escape.visible(re.sub(r"[ \t]*[\r\n]+[ \t]*", " ", name.strip()))
    assert " ".join(wanted.split()) in " ".join(read.split())


@hostile
def test_markdown_code_gives_back_the_text(name):
    (inline,) = (token for token in MarkdownIt().parse("x " + escape.code(name) + " y") if token.type == "inline")
    assert [child.type for child in inline.children] == ["text", "code_inline", "text"]
    assert inline.children[1].content.strip() == escape.visible(name).strip()
    tokens = MarkdownIt().parse(escape.code_block(f"a\n{name}\nb", "sh") + "\n\nafter")
    assert [token.type for token in tokens] == ["fence", "paragraph_open", "inline", "paragraph_close"]


@hostile
def test_a_csv_cell_is_no_formula_and_reads_back(tmp_path, name):
    write_csv(tmp_path / "a.csv", [{name: name, "number": -0.5, "text number": "-1e-5"}])
    written = (tmp_path / "a.csv").read_text()
    assert len(written.splitlines()) == 2 and not UNSEEN.search(written.replace("\n", ""))
    header, row = csv.reader(io.StringIO(written))
    assert header[0] == row[0] and not re.match(r"\s*[=+\-@\uff1d]", row[0])
    assert row[0].removeprefix("'") == escape.visible(name) and row[1:] == ["-0.5", "-1e-5"]


@hostile
def test_latex_holds_no_command_but_its_own(name):
    written = escape.latex(name)
    left = re.sub(r"\\(?:text[a-z]+\{\}|[{}$&#_%])", "", written)
    assert not set(left) & set('\\{}$&#_%~^<>|"') and not UNSEEN.search(written)


@hostile
def test_file_names_stay_in_their_folder_and_differ(tmp_path, name):
    for text in (name, f"../{name}", f"/{name}", f"{name}/..", name * 50):
        made = escape.file_name(text)
        assert (tmp_path / made).resolve().parent == tmp_path.resolve() and len(made.encode()) < 255
        (tmp_path / made).mkdir(exist_ok=True)
    names = ["..", ".", "", "a/b", "a_b", "a\\b", "a\0b", " a", "a "]
    assert len({escape.file_name(text) for text in names}) == len(names)
    assert escape.file_name("quickstart grid-2.1") == "quickstart grid-2.1"


class Text(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.said, self.attributes = set(), [], set()
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)

    def handle_data(self, data):
        self.said.append(data)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    root = tmp_path_factory.mktemp("plain")
    folder = root / whole(root)
    return folder, Text(page("t", report.sections(root), None, None))


def renamed(root, folder, name):
    """A store whose run carries `name` wherever a user or a model may give one."""
    import json

    record = json.loads((folder / "record.json").read_text())
    for path in (
        ("config", "method", "name"),
        ("config", "model", "name"),
        ("config", "task", "name"),
        ("attempts", 0, "primary_metric"),
        ("attempts", 0, "task_about", "source"),
        ("attempts", 0, "task_about", "licence"),
        ("attempts", 0, "environment", "packages", "torch"),
        ("attempts", 0, "memory", "kind"),
    ):
        record = mutant(record, path, name)
    attempt = record["attempts"][0]
    attempt["metrics"] = {split: {name: 0.5} for split in ("validation", "test")}
    attempt["reference"] = {name: 0.5}
    attempt["memory"]["ledger"] = {name: attempt["memory"]["ledger"]["train"]}
    record["experiments"] = [name]
    record["experiment_notes"] = {
        name: {"demonstration": {"notes": [name], "real_command": name}, "fairness": [name]},
    }
    put(root, "00000000000a", record, folder)
    record["attempts"][0] |= {"state": "failed", "error": {"type": name, "message": name, "phase": name}}
    record["state"] = "failed"
    put(root, "00000000000b", mutant(record, ("config", "seed"), 2), folder)
    return root


@hostile
def test_a_report_of_hostile_names(tmp_path, plain, name):
    root = renamed(tmp_path, plain[0], name)
    parts = report.sections(root)
    written = "\n\n".join(map(markdown, parts))
    assert not UNSEEN.search(written.replace("\n", ""))
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(written)
    inline = {child.type for token in tokens if token.type == "inline" for child in token.children}
    assert inline <= {"text", "text_special", "softbreak", "strong_open", "strong_close", "code_inline"}
    assert not {token.type for token in tokens} & {"html_block", "fence", "code_block", "hr", "ordered_list_open"}

    made = page("t", parts, None, None)
    read = Text(made)
    assert read.tags == plain[1].tags | ({"div", "strong"} & read.tags) and not UNSEEN.search(made.replace("\n", ""))
    assert read.attributes <= plain[1].attributes
    assert escape.visible(name) in "".join(read.said)

    shown = report.text(parts)
    stream = io.StringIO()
    console = Console(file=stream, width=300)
    console.print(listing.runs_table(Store(root)))
    comparison.show(compare("00000000000a", "00000000000a", root), console)
    console.print(memory.build(root, "00000000000a", None)[0])
    shown += stream.getvalue() + tuning.best_learning_rates(root, name)
    assert not UNSEEN.search(shown.replace("\n", ""))
    # With a seed that failed its rate would not be given.
    shutil.rmtree(root / "00000000000b")
    assert yaml.safe_load(tuning.best_learning_rates(root, name).split("\n\n")[-1])["tuned"]["learning_rate"]


@pytest.mark.parametrize("name", [HOSTILE["math"], HOSTILE["ansi"], HOSTILE["markup"], HOSTILE["lines"], "_hidden"])
@pytest.mark.parametrize("more", ["", "x" * 2000, "行调整 🤖"], ids=["short", "long", "other script"])
def test_a_picture_of_hostile_names(tmp_path, plain, name, more, recwarn):
    name += more
    assert plots.accuracy_vs_memory(report.sections(renamed(tmp_path, plain[0], name))).startswith(b"\x89PNG")
    assert not [str(warning.message) for warning in recwarn]


def test_a_path_with_square_brackets(tmp_path, plain, capsys):
    out = tmp_path / "a [/x] [bold]"
    for command in (["report", "--out", str(out)], ["runs"], ["report", "memory", "00000000000a"]):
        root = tmp_path / "[/red] runs"
        if not root.exists():
            renamed(root, plain[0], "n")
        with pytest.raises(SystemExit) as ended:
            main([*command, "--store", str(root)])
        assert ended.value.code == 0
    assert "[/red]" in capsys.readouterr().out and (out / "index.html").exists()
