"""Two runs held against each other: settings, environment, every number, and how the runs are found."""

import copy
import json
import subprocess
import sys

import pytest
from compare_factory import (
    MIB,
    amend,
    cells,
    compared,
    limited,
    lora_and_rows,
    number,
    put,
    shown,
    status,
    two_attempts,
)
from report_factory import COSTS, ENVIRONMENT, classification, config, fail, finish

from rowsft.errors import UserError
from rowsft.report.compare import compare
from rowsft.store import Store


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return lora_and_rows(tmp_path_factory.mktemp("compare") / "runs")


def test_only_what_differs_is_a_difference_of_settings(pair):
    settings = compared(pair).settings
    assert settings["method.name"] == {"a": "lora", "b": "row_sft"}
    assert settings["trainer.learning_rate"] == {"a": 3e-4, "b": 1e-3}
    assert set(settings) == {"method.name", "method._target_", "trainer.learning_rate"}


def test_a_setting_of_one_side_alone_has_no_value_on_the_other(tmp_path):
    store = Store(tmp_path)
    plain = finish(store, classification("lora", 1), task="sentiment")
    other = {**config()["method"], "importance": None, "channel": True}
    runs = plain, finish(store, classification("lora", 1), task="sentiment", method=other)
    comparison = compare(*runs, tmp_path)
    assert comparison.settings == {"method.importance": {"b": None}, "method.channel": {"b": True}}
    text = shown(comparison)
    assert cells(text, "method.importance") == ["–", "null"] and cells(text, "method.channel") == ["–", "true"]


def test_where_a_run_is_kept_or_shown_is_no_setting(tmp_path):
    first, second = (Store(tmp_path / name) for name in "ab")
    run = finish(first, classification("lora", 1), task="sentiment", experiment="one")
    finish(second, classification("lora", 1), task="sentiment", experiment="two", tracker={"name": "wandb"})
    comparison = compare(str(first.root / run), str(second.root / run))
    assert comparison.settings == {} and "settings: no difference" in shown(comparison)


def test_the_environment_stands_apart(tmp_path):
    changed = copy.deepcopy(ENVIRONMENT)
    changed["packages"]["torch"] = "2.14.0"
    changed["git_commit"] = "f" * 40
    changed["hardware"]["cpu_model"] = "Another CPU"
    changed["threads"]["torch_threads"] = 4
    changed["seeds"]["seed"] = 9
    folders = two_attempts(tmp_path, environment=changed, concurrent_jobs=2, scores_from_cache=True)
    comparison = compare(*map(str, folders))
    assert comparison.settings == {}
    assert comparison.environment == {
        "packages.torch": {"a": "2.13.0", "b": "2.14.0"},
        "git_commit": {"a": ENVIRONMENT["git_commit"], "b": "f" * 40},
        "hardware.cpu_model": {"a": "Some CPU", "b": "Another CPU"},
        "threads.torch_threads": {"a": 2, "b": 4},
        "concurrent_jobs": {"a": 1, "b": 2},
        "scores_from_cache": {"a": False, "b": True},
    }
    text = shown(comparison)
    assert text.index("settings: no difference") < text.index("environment that differs") < text.index("2.14.0")
    assert "Seconds may have moved for the environment alone." in text


def test_every_number_with_its_difference_and_change(pair):
    comparison = compared(pair)
    names = [number.name for number in comparison.numbers]
    for name in (
        "metrics.validation.accuracy",
        "metrics.test.accuracy",
        "parameters.adapter",
        "parameters.base",
        "memory.select.peak_allocated_bytes",
        "memory.train.peak_allocated_bytes",
        "memory.train.step_peak_new_bytes",
        "seconds.train",
        "seconds.total",
        "step_seconds.median",
        "step_seconds.p95",
        "tokens_per_second",
    ):
        assert name in names
    assert not [name for name in names if name.startswith(("resolved", "steps", "files"))]
    peak = number(comparison, "memory.train.peak_allocated_bytes")
    assert (peak.a, peak.b, peak.difference) == (441.25 * MIB, 402.5 * MIB, -38.75 * MIB)
    assert peak.change_percent == pytest.approx(100 * (402.5 / 441.25 - 1))
    assert number(comparison, "tokens_per_second").change_percent == pytest.approx(100 * (0.70 / 0.61 - 1))
    base = number(comparison, "parameters.base")
    assert (base.difference, base.change_percent) == (0, 0.0)
    # Floats as they are written: 0.611 - 0.701, without binary dust.
    assert number(comparison, "step_seconds.median").difference == -0.09


def test_units_are_for_readers(pair):
    text = shown(compared(pair))
    peak = ["441.25", "MiB", "402.50", "MiB", "-38.75", "MiB", "-8.78", "%"]
    assert cells(text, "memory.train.peak_allocated_bytes") == peak
    assert cells(text, "step_seconds.median")[:6] == ["701.0", "ms", "611.0", "ms", "-90.0", "ms"]
    assert cells(text, "seconds.train")[:6] == ["70.00", "s", "61.00", "s", "-9.00", "s"]
    assert cells(text, "parameters.base") == ["22,713,216", "22,713,216", "0", "0", "%"]
    assert cells(text, "tokens_per_second")[:2] == ["1,428.6", "1,639.3"]


def test_what_one_side_has_not_measured_is_a_dash_and_never_zero(pair):
    comparison = compared(pair)
    select = number(comparison, "memory.select.peak_allocated_bytes")
    assert (select.a, select.b, select.difference, select.change_percent) == (None, 123 * MIB, None, None)
    assert cells(shown(comparison), select.name) == ["–", "123.00", "MiB", "–", "–"]
    # It stands where the other side has it, ahead of training.
    names = [number.name for number in comparison.numbers]
    assert names.index(select.name) + 1 == names.index("memory.train.peak_allocated_bytes")


def test_what_neither_side_has_measured_is_not_shown(tmp_path):
    memory = {"kind": "cpu_profiler", "train": {"peak_allocated_bytes": 5, "peak_reserved_bytes": None}}
    folders = two_attempts(tmp_path, memory=memory)
    amend(Store(tmp_path / "before"), folders[0].name, memory=memory)
    text = shown(compare(*map(str, folders)))
    assert "peak_allocated_bytes" in text and "peak_reserved_bytes" not in text
    assert limited(folders, "peak_reserved_bytes=+1%") == "missing"


def test_a_number_that_was_not_finite_is_said(tmp_path):
    folders = two_attempts(tmp_path, metrics={"test": {"accuracy": None}}, non_finite=["metrics.test.accuracy"])
    comparison = compare(*map(str, folders), limits=["test.accuracy=-0.5"])
    assert "B: nan or infinite: metrics.test.accuracy" in shown(comparison)
    assert comparison.verdicts[0].outcome == "missing" and not comparison.within


@pytest.mark.parametrize("written", ["NaN", "-Infinity", "1e999"])
def test_a_number_that_another_program_wrote_as_not_finite_is_refused(tmp_path, written):
    folders = two_attempts(tmp_path, metrics={"test": {"accuracy": "here"}})
    put(folders[1] / "record.json", '"here"', written)
    with pytest.raises(UserError, match=f"{written} is no finite number"):
        compare(*map(str, folders))


def test_json_says_the_same(pair, capsys):
    store, lora, rows = pair
    code, out, _ = status(capsys, lora, rows, "--store", store.root, "--json", "--max-change", "seconds.train=0")
    said = json.loads(out)
    assert code == 1 and said["within"] is False and said == compared(pair, "seconds.train=0").as_dict()
    assert said["a"]["kind"] == "run" and said["a"]["name"] == str(store.root / lora)
    assert said["settings"]["method.name"] == {"a": "lora", "b": "row_sft"}
    numbers = {entry["name"]: entry for entry in said["numbers"]}
    assert numbers["memory.train.peak_allocated_bytes"]["difference"] == -38.75 * MIB
    assert numbers["memory.select.peak_allocated_bytes"]["a"] is None
    assert numbers["metrics.test.accuracy"]["paired_examples"] == 400
    assert said["limits"] == [
        {
            "limit": "seconds.train=0",
            "name": "seconds.train",
            "outcome": "over",
            "reason": "70.00 s -> 61.00 s (-9.00 s, -12.86 %)",
        }
    ]


def test_runs_are_found_by_beginning_folder_and_link(pair, tmp_path, monkeypatch):
    store, lora, rows = pair
    link = tmp_path / "before"
    link.symlink_to(store.root / lora)
    expected = compared(pair).as_dict()["numbers"]
    assert compare(lora[:6], str(store.root / rows), store.root).as_dict()["numbers"] == expected
    monkeypatch.chdir(store.root / rows)
    assert compare(str(link), ".").as_dict()["numbers"] == expected


def test_runs_that_are_unknown_or_unfinished(pair, tmp_path):
    store, lora, _ = pair
    with pytest.raises(UserError, match="run 'zzz': is not in it .*`rowsft runs` lists"):
        compare(lora, "zzz", store.root)
    other = Store(tmp_path)
    error = {"type": "OutOfMemoryError", "message": "no", "traceback": "t", "phase": "train"}
    oom = fail(other, "oom", error)
    with pytest.raises(UserError, match=rf"run {oom} \(lora\) is oom and has no finished attempt"):
        compare(str(store.root / lora), oom, tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="empty: no record.json in this folder; expected a run's id or folder"):
        compare(lora, str(empty), store.root)
    (tmp_path / oom / "record.json").write_text('{"schema_version"')
    with pytest.raises(UserError, match="is damaged"):
        compare(str(store.root / lora), oom, tmp_path)


def test_a_narrow_terminal_cuts_nothing_off(pair):
    text = shown(compared(pair, "train.peak_allocated_bytes=+0"), width=100)
    assert "…" not in text and f"{COSTS['lora'][1]:.2f} MiB" in text
    assert "within   train.peak_allocated_bytes=+0  memory.train.peak_allocated_bytes: 441.25 MiB -> 402.50 MiB" in text


def test_torch_is_never_imported(pair):
    store, lora, rows = pair
    code = (
        "import sys; from rowsft.cli import main as cli\n"
        f"try: cli.main(['compare', {lora!r}, {rows!r}, '--store', {str(store.root)!r}])\n"
        "except SystemExit as ended: assert ended.code == 0\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0
