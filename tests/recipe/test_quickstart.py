"""`make quickstart` in a debug size on the packaged model and data: every method, the report, a second call."""

import csv
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rowsft.assets import fetch

pytestmark = pytest.mark.whole

METHODS = {"head", "row_sft", "lora", "dora", "full"}


@pytest.mark.slow
def test_quickstart_twice(tmp_path):
    fetch.fetch_all(["minilm", "movie_reviews"])
    command = ["sweep", "experiment=quickstart", "debug=tiny", f"store={tmp_path / 'runs'}"]
    first = rowsft(tmp_path, *command)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "5 jobs: 5 done, 0 not" in first.stdout

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("record.json")}
    assert len(before) == 5
    second = rowsft(tmp_path, *command)
    assert second.returncode == 0, second.stderr
    assert second.stdout.count("done already") == 5
    assert {path: path.stat().st_mtime_ns for path in before} == before

    out = tmp_path / "report"
    report = rowsft(tmp_path, "report", "--store", str(tmp_path / "runs"), "--experiment", "debug", "--out", str(out))
    assert report.returncode == 0, report.stderr
    with (out / "runs.csv").open() as stream:
        assert {row["config.method.name"] for row in csv.DictReader(stream)} == METHODS
    assert "demonstration" in (out / "report.md").read_text().lower()
    assert (out / "accuracy_vs_memory.png").read_bytes().startswith(b"\x89PNG")
    HTMLParser().feed((out / "index.html").read_text())
    assert "row-SFT" in report.stdout


def rowsft(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "rowsft.cli", *arguments],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
