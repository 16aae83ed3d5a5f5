"""The files of a report: CSV, page, picture, terminal text; and what is said where there is nothing to report."""

import csv
import io
import json
import re
import subprocess
import sys
from base64 import b64decode
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt
from matplotlib.image import imread
from report_factory import ENVIRONMENT, classification, fail, finish
from rich.console import Console

from rowsft import report
from rowsft.errors import UserError
from rowsft.report import tables
from rowsft.store import Store


def test_csv_files_round_trip(built):
    store, files = built
    with files.runs.open(newline="") as stream:
        rows = {row["id"]: row for row in csv.DictReader(stream)}
    assert set(rows) == {record.id for record in store.runs()}
    record = next(r for r in store.runs() if r.result and r.config["method"]["name"] == "dora")
    row = rows[record.id]
    assert float(row["memory.train.peak_allocated_bytes"]) == 566 * 2**20
    assert float(row["config.trainer.learning_rate"]) == 3e-4 and json.loads(row["resolved"]) == record.result.resolved
    assert {row["state"] for row in rows.values()} == {"done", "failed", "oom"} and "traceback" not in str(rows)
    with files.table.open(newline="") as stream:
        table = list(csv.DictReader(stream))
    expected = [line for part in files.sections for line in part.lines]
    assert [float(row["value"]) for row in table if row["state"] == "done"] == [line.value for line in expected]
    assert [row["reason"] for row in table if row["state"] == "failed"] == ["TrainingDiverged: loss is nan at step 12"]


def test_markdown_is_read_as_tables(built):
    tokens = MarkdownIt("commonmark").enable("table").parse(built[1].markdown.read_text())
    headings = sum(token.type == "th_open" for token in tokens)
    sheets = [sheet for part in built[1].sections for sheet in [tables.main(part), *tables.blocks(part)]]
    assert headings == sum(len(sheet.columns) for sheet in sheets) > 0


def test_a_column_is_called_by_what_it_shows(built):
    """One name from the measurement to the CSV file, whatever its title."""
    with built[1].table.open(newline="") as stream:
        keys = set(csv.DictReader(stream).fieldnames)
    for part in built[1].sections:
        for sheet in [tables.main(part), tables.terminal_main(part, part.lines)]:
            assert {column.key for column in sheet.columns} <= keys


class Strict(HTMLParser):
    """Checks that tags nest and collects text and attributes."""

    VOID = ("meta", "img", "source")

    def __init__(self):
        super().__init__()
        self.open, self.text, self.links, self.tags = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_escaped_and_fetches_nothing(built):
    html = built[1].page.read_text()
    parser = Strict()
    parser.feed(html)
    assert parser.open == [] and len(parser.links) == 4
    assert all(re.match("data:image/(png|svg.xml);base64,", link) for link in parser.links) and "http" not in html
    assert "b" not in parser.tags and "script" not in parser.tags
    text = " ".join(parser.text)
    for said in (
        "close to the task <b>.",
        "rowsft sweep experiment=paper_stsb seed=1,2,3",
        "OutOfMemoryError: tried to allocate 2 GiB <b>",
        "at least 3 seeds each",
        "Zero line, nothing trained (test): cosine_pearson 0.8270.",
        "CC BY-SA 4.0",
        "Apache-2.0",
        ENVIRONMENT["git_commit"],
        "torch_threads",
        *(record.id for record in built[0].runs()),
    ):
        assert said in text
    curves = [b64decode(link.partition(",")[2]) for link in parser.links if "svg" in link]
    for curve in curves:
        titles = [text.text for text in ElementTree.fromstring(curve).iter("{http://www.w3.org/2000/svg}text")]
        assert titles[-5:] == ["head only", "row-SFT", "LoRA", "DoRA", "full fine-tuning"]


def test_the_picture_opens_and_is_not_blank(built):
    picture = imread(built[1].picture)
    assert picture.shape[0] > 500 and picture.shape[1] > 1500 and picture[..., :3].std() > 0.05


def test_the_same_records_give_the_same_bytes(tmp_path):
    store = Store(tmp_path / "runs")
    for method in ("lora", "row_sft"):
        finish(store, classification(method, 1), method=method, task="sentiment")
    once, again = (report.build(store.root, "demo", tmp_path / name) for name in ("once", "again"))
    for name in ("markdown", "runs", "table", "picture", "page"):
        assert getattr(again, name).read_bytes() == getattr(once, name).read_bytes(), name


def test_terminal_and_plain_text_say_the_same(built):
    console = Console(width=160, record=True, file=io.StringIO())
    report.print_tables(built[1], console)
    plain = report.text(built[1].sections)
    assert plain in console.export_text() and "\x1b" not in plain
    for said in (
        "A demonstration, not a result.",
        "row-SFT",
        "0.8816 ± 0.0185",
        "-0.26 %",
        "not met: at least 3 seeds",
    ):
        assert said in plain
    narrow = report.text(built[1].sections, width=80)
    assert "…" not in narrow and "0.8816 ± 0.0185" in narrow and max(map(len, narrow.splitlines())) <= 80


def test_nothing_finished_still_makes_a_report(tmp_path):
    store = Store(tmp_path / "runs")
    fail(store, "failed", {"type": "ValueError", "message": "", "traceback": None, "phase": None})
    files = report.build(tmp_path / "runs", None, tmp_path / "out")
    assert files.picture is None and "No run has finished yet." in files.markdown.read_text()
    assert "No run has finished yet." in files.page.read_text() and "ValueError" in report.text(files.sections)


def test_no_runs_is_said_with_what_there_is(built, tmp_path):
    with pytest.raises(UserError, match=r"experiment 'nope': no runs in store .*; it has: demo$"):
        report.build(built[0].root, "nope", tmp_path)
    with pytest.raises(UserError, match="no runs; make some with `rowsft run`"):
        report.build(tmp_path / "empty", None, tmp_path)
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="taken: .*--out FOLDER"):
        report.build(built[0].root, "demo", tmp_path / "taken")


def test_torch_is_never_imported(tmp_path):
    finish(Store(tmp_path / "runs"), classification("lora", 1), task="sentiment")
    code = (
        "import sys; from rowsft import report; from rowsft.report import listing;"
        f"assert report.build({str(tmp_path / 'runs')!r}, 'demo', {str(tmp_path / 'out')!r}).picture;"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
