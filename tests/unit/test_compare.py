"""Two runs, or two benchmark files, held against each other: what differs, what moved, and limits on it."""

import copy
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from report_factory import COSTS, ENVIRONMENT, classification, config, fail, finish, metric_of, regression
from rich.console import Console

from rowsft import cli
from rowsft.compare import compare, terminal
from rowsft.compare.limits import parse
from rowsft.compare.number import Number, paired_up
from rowsft.compare.units import amounts, change, percent
from rowsft.errors import UserError
from rowsft.store import Store

MIB = 2**20


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A store with a LoRA run and a row-SFT run on the same sentiment examples."""
    store = Store(tmp_path_factory.mktemp("compare") / "runs")
    lora = finish(store, classification("lora", 1), method="lora", task="sentiment")
    rows = finish(store, classification("row_sft", 1), method="row_sft", task="sentiment")
    return store, lora, rows


def compared(pair, *limits):
    store, lora, rows = pair
    return compare(lora, rows, store.root, list(limits))


def number(comparison, name):
    return next(number for number in comparison.numbers if number.name == name)


def shown(comparison, width=160):
    console = Console(width=width, no_color=True, file=io.StringIO())
    terminal.show(comparison, console)
    return console.file.getvalue()


def cells(text, name):
    """The words of the line that begins with a name, the name left out."""
    (line,) = [line for line in text.splitlines() if line.split() and line.split()[0] == name]
    return line.split()[1:]


def amend(store, run, **fields):
    """Change fields of a run's finished attempt on disk: what a test needs beyond the factory's numbers."""
    path = store.root / run / "record.json"
    raw = json.loads(path.read_text())
    raw["attempts"][-1] |= fields
    path.write_text(json.dumps(raw))


def two_attempts(tmp_path, **fields):
    """The same LoRA run in two stores, the second with changed fields: a run before and after a change of the code."""
    before, after = Store(tmp_path / "before"), Store(tmp_path / "after")
    run = finish(before, classification("lora", 1), task="sentiment")
    assert finish(after, classification("lora", 1), task="sentiment") == run
    amend(after, run, **fields)
    return before.root / run, after.root / run


def limited(folders, *limits):
    (verdict,) = compare(*map(str, folders), limits=list(limits)).verdicts
    return verdict.outcome


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
    assert not [name for name in names if name.startswith(("knobs", "steps", "files"))]
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


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("x_bytes", -40, "-40 B"),
        ("x_bytes", 3 * 2**10, "+3.00 KiB"),
        ("x_bytes", 0, "0"),
        ("step_seconds.p95", 2e-5, "+20.0 µs"),
        ("flops", 1_500_000_000, "+1.500 GFLOP"),
        ("flops", 12, "+12 FLOP"),
        ("accuracy", 1e-6, "+1.0e-06"),
        ("accuracy", 0.0, "0"),
        ("parameters.adapter", 1000, "+1,000"),
        ("tokens_per_second", -0.5, "-0.5000"),
        ("accuracy", None, "–"),
    ],
)
def test_a_small_difference_is_never_shown_as_none(name, value, expected):
    assert change(name, value) == expected


def test_two_values_share_the_unit_of_the_larger():
    assert amounts("x_bytes", (2 * MIB, 2**19)) == ["2.00 MiB", "0.50 MiB"]
    assert amounts("step_seconds", (0.2, None)) == ["200.0 ms", "–"]
    assert [percent(value) for value in (None, 0.0, 12.345, 1e-4)] == ["–", "0 %", "+12.35 %", "+1.0e-04 %"]


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


def test_names_of_one_side_keep_their_place():
    merged = paired_up({"a": 1, "c": 1}, {"z": 2, "a": 2, "b": 2, "c": 2}, {})
    assert [(number.name, number.a, number.b) for number in merged] == [
        ("z", None, 2),
        ("a", 1, 2),
        ("b", None, 2),
        ("c", 1, 2),
    ]


def test_metrics_on_the_same_examples_have_the_paired_interval(pair):
    comparison = compared(pair)
    found = number(comparison, "metrics.test.accuracy")
    right = [
        np.array([line["prediction"] == line["label"] for line in classification(method, 1)], dtype=float)
        for method in ("lora", "row_sft")
    ]
    gaps = right[1] - right[0]
    assert found.difference == pytest.approx(gaps.mean()) and found.paired.examples == 400
    # Of a mean the bootstrap interval is near the normal one.
    half = 1.96 * gaps.std() / 20
    assert (found.paired.low, found.paired.high) == pytest.approx((gaps.mean() - half, gaps.mean() + half), abs=0.01)
    assert number(comparison, "metrics.validation.accuracy").paired is None
    text = shown(comparison)
    interval = f"+0.0200 [{found.paired.low:+.4f}, {found.paired.high:+.4f}]"
    assert f"metrics.test.accuracy: {interval}, paired on the same 400 examples (95 %)" in text.splitlines()


def test_seeds_may_differ_and_every_metric_of_the_predictions_has_its_interval(tmp_path):
    store = Store(tmp_path)
    runs = []
    for seed in (1, 2):
        lines = regression("lora", seed)
        runs.append(finish(store, lines, seed=seed))
        a, b = (np.array([line[key] for line in lines]) for key in ("prediction", "label"))
        spearman = float(np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1])
        metrics = {"test": {"pearson": metric_of(lines, "stsb")[1], "spearman": spearman, "other": 0.5}}
        amend(store, runs[-1], metrics=metrics)
    comparison = compare(*runs, tmp_path)
    for name in ("pearson", "spearman"):
        found = number(comparison, f"metrics.test.{name}")
        assert found.paired.low < found.difference < found.paired.high and found.paired.examples == 200
        assert found.paired.value == pytest.approx(found.difference, abs=1e-9)
    assert number(comparison, "metrics.test.other").paired is None
    assert set(comparison.settings) == {"seed"}


def test_other_examples_have_no_paired_interval(tmp_path):
    store = Store(tmp_path)
    runs = [finish(store, classification("lora", 1, n=n), task="sentiment", seed=n) for n in (400, 300)]
    comparison = compare(*runs, tmp_path)
    assert number(comparison, "metrics.test.accuracy").difference is not None
    assert all(number.paired is None for number in comparison.numbers) and "paired on" not in shown(comparison)


def test_predictions_that_are_gone_or_damaged(tmp_path):
    folders = two_attempts(tmp_path)
    path = folders[1] / "attempt-1" / "predictions.jsonl"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(UserError, match=r"predictions\.jsonl is damaged \(JSONDecodeError: .*remove it"):
        compare(*map(str, folders))
    path.unlink()
    assert all(number.paired is None for number in compare(*map(str, folders)).numbers)


def test_a_number_that_was_not_finite_is_said(tmp_path):
    folders = two_attempts(tmp_path, metrics={"test": {"accuracy": None}}, non_finite=["metrics.test.accuracy"])
    comparison = compare(*map(str, folders), limits=["test.accuracy=-0.5"])
    assert "B: nan or infinite: metrics.test.accuracy" in shown(comparison)
    assert comparison.verdicts[0].outcome == "missing" and not comparison.within


@pytest.mark.parametrize(
    "limit, outcome",  # A: 100 s of training and accuracy 0.8, B: 110 s and 0.7
    [
        ("seconds.train=+10%", "within"),
        ("seconds.train=+9.99%", "over"),
        ("seconds.train=-0", "within"),
        ("seconds.train=10", "within"),
        ("seconds.train=9.9", "over"),
        ("seconds.train=0%", "over"),
        ("test.accuracy=-0.1", "within"),
        ("test.accuracy=-0.09", "over"),
        ("test.accuracy=+0", "within"),
        ("test.accuracy=0.05", "over"),
        ("test.accuracy=1e-1", "within"),
        ("test.accuracy=-12.5%", "within"),
        ("test.accuracy=-12.4%", "over"),
    ],
)
def test_sign_and_percent_of_a_limit(tmp_path, limit, outcome):
    fields = [{"seconds": {"train": s}, "metrics": {"test": {"accuracy": a}}} for s, a in ((100, 0.8), (110, 0.7))]
    folders = two_attempts(tmp_path, **fields[1])
    amend(Store(tmp_path / "before"), folders[0].name, **fields[0])
    assert limited(folders, limit) == outcome


@pytest.mark.parametrize(
    "a, b, limit, allowed",
    [
        (2**53, 2**53 + 1, "x=+0", False),
        (2**53 + 1, 2**53, "x=+0", True),
        (2**53 + 1, 2**53, "x=0", False),
        (0.3, 0.4, "x=+0.1", True),
        (1.0, 1.1, "x=+10%", True),
        (1.0, 1.1000001, "x=+10%", False),
        (0, 0, "x=+10%", True),
        (0, 1, "x=+10%", False),
        (-2.0, -2.3, "x=-10%", False),
        (-2.0, -2.2, "x=-10%", True),
    ],
)
def test_limits_are_exact(a, b, limit, allowed):
    assert parse(limit).allows(a, b) is allowed


def test_a_change_from_zero_has_no_percent():
    assert Number("x", 0, 3).change_percent is None and Number("x", 0, 0).change_percent == 0.0
    assert Number("x", -2.0, -3.0).change_percent == -50.0


@pytest.mark.parametrize("text", ["a", "a=", "=+1%", "a=+-1", "a=1/3", "a=+1 MiB", "a=1e999999999"])
def test_a_limit_that_cannot_be_read(pair, text):
    with pytest.raises(UserError, match="^--max-change .*expected NAME=LIMIT"):
        compared(pair, text)


def test_a_name_may_be_the_end_of_one_name(pair):
    (verdict,) = compared(pair, "train.peak_allocated_bytes=+0").verdicts
    assert (verdict.name, verdict.outcome) == ("memory.train.peak_allocated_bytes", "within")
    # The name that a benchmark gives the same number.
    assert compared(pair, "step_seconds_median=+0").verdicts[0].name == "step_seconds.median"


def test_ambiguous_and_unknown_names_list_candidates(pair):
    with pytest.raises(UserError, match=r"the end of 2 names: metrics\.validation\.accuracy, metrics\.test\.accuracy;"):
        compared(pair, "accuracy=-0.01")
    with pytest.raises(UserError, match=r"no number is called acuracy; the nearest: metrics\.\w+\.accuracy, "):
        compared(pair, "acuracy=-0.01")
    with pytest.raises(UserError, match="no number is called eak_allocated_bytes;"):
        compared(pair, "eak_allocated_bytes=+1")
    with pytest.raises(UserError, match=r"no number is called \*\.nothing;"):
        compared(pair, "*.nothing=+1")


def test_wildcards_name_many(pair):
    verdicts = compared(pair, "metrics.*=0.5", "seconds.t*=+0").verdicts
    assert [verdict.name for verdict in verdicts[:2]] == ["metrics.validation.accuracy", "metrics.test.accuracy"]
    assert {verdict.name for verdict in verdicts[2:]} == {"seconds.train", "seconds.total"}


def test_wildcards_leave_out_what_neither_side_has_measured(tmp_path):
    memory = {"train": {"peak_allocated_bytes": 5, "peak_reserved_bytes": None}, "select": None}
    folders = two_attempts(tmp_path, memory=memory)
    amend(Store(tmp_path / "before"), folders[0].name, memory=memory)
    assert limited(folders, "*peak*bytes=+0") == "within"
    assert limited(folders, "*reserved*=+0") == "missing"


def test_a_number_missing_under_a_limit_breaks_it(pair):
    comparison = compared(pair, "select.peak_allocated_bytes=+100%")
    assert not comparison.within and comparison.verdicts[0].reason == "not measured in A"


def status(capsys, *arguments):
    """Exit status and what went to the two streams."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["compare", *map(str, arguments)])
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


def test_exit_status_and_every_limit_in_a_line_of_its_own(pair, capsys):
    store, lora, rows = pair
    where = (lora, rows, "--store", store.root)
    assert status(capsys, *where)[0] == 0
    code, out, _ = status(capsys, *where, "--max-change", "train.peak_allocated_bytes=+0")
    assert code == 0 and "1 of 1 within limits" in out
    limits = ("--max-change", "tokens_per_second=+1%", "--max-change", "test.accuracy=+50%")
    code, out, err = status(capsys, *where, *limits, "--max-change", "select.peak_allocated_bytes=0")
    assert (code, err) == (1, "")
    lines = out.splitlines()
    over = "over     tokens_per_second=+1%  tokens_per_second: 1,428.6 -> 1,639.3 (+210.8, +14.75 %)"
    assert over in lines and lines[-1] == "1 of 3 within limits"
    assert any(line.startswith("within   test.accuracy=+50%  metrics.test.accuracy: ") for line in lines)
    assert any(line.startswith("missing  ") and line.endswith(": not measured in A") for line in lines)
    code, out, err = status(capsys, *where, "--max-change", "nonsense")
    assert (code, out) == (2, "") and err.startswith("rowsft: error: --max-change nonsense: ") and err.count("\n") == 1


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


def row(method, shape="llama", **changes):
    """A row as benchmarks/summary.py makes it."""
    exact = {"trainable_parameters": 1000, "flops": 3_000_000_000, "step_peak_bytes": 8 * MIB}
    times = {"step_seconds_median": 0.25, "step_seconds_p95": 0.3, "step_seconds_min": 0.2, "step_seconds_max": 0.4}
    ratios = {"flops_over_floor": 1.5, "step_seconds_over_floor": {"median": 1.1, "low": 1.0, "high": 1.2}}
    fields = {"method": method, "shape": shape, **exact, "total_peak_bytes": 64 * MIB, **times, "timed_steps": 12}
    return {**fields, **ratios, **changes}


def write(path, rows, **changes):
    result = {
        "rows": rows,
        "about": {"rows": "row-SFT"},
        "settings": {"shape": "['llama']", "device": "cpu", "steps": "2", "out": str(path.parent)},
        "environment": ENVIRONMENT,
        "command": "python benchmarks/step.py",
        "commit": ENVIRONMENT["git_commit"],
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result | changes))
    return str(path)


@pytest.fixture
def files(tmp_path):
    before = write(tmp_path / "before" / "step.json", [row("floor"), row("lora"), row("rows"), row("shira")])
    after = [row("floor"), {"method": "lora", "shape": "llama", "error": "UserError: no"}]
    after += [row("rows", step_peak_bytes=8 * MIB + 40, step_seconds_median=0.2, flops=3_000_000_001), row("dora")]
    settings = {"shape": "['llama']", "device": "cpu", "steps": "4", "out": "elsewhere"}
    return before, write(tmp_path / "after" / "step.json", after, settings=settings)


def test_benchmark_rows_are_matched_by_method(files):
    comparison = compare(*files)
    assert comparison.settings == {"steps": {"a": "2", "b": "4"}} and comparison.environment == {}
    peak = number(comparison, "llama.rows.step_peak_bytes")
    assert (peak.a, peak.b, peak.difference) == (8 * MIB, 8 * MIB + 40, 40)
    fields = [n.name.removeprefix("llama.rows.") for n in comparison.numbers if n.name.startswith("llama.rows.")]
    assert fields == [
        "trainable_parameters",
        "flops",
        "step_peak_bytes",
        "total_peak_bytes",
        "step_seconds_median",
        "step_seconds_p95",
    ]
    assert (number(comparison, "llama.shira.flops").b, number(comparison, "llama.dora.flops").a) == (None, None)
    text = shown(comparison)
    moved = ["8.00", "MiB", "8.00", "MiB", "+40", "B", "+4.8e-04", "%"]
    assert cells(text, "llama.rows.step_peak_bytes") == moved
    assert cells(text, "llama.rows.step_seconds_median") == ["250.0", "ms", "200.0", "ms", "-50.0", "ms", "-20.00", "%"]
    assert cells(text, "llama.shira.flops") == ["3.000", "GFLOP", "–", "–", "–"]
    assert "B: llama.lora failed: UserError: no" in text


def test_limits_on_benchmarks(files, capsys):
    code, out, _ = status(capsys, *files, "--max-change", "rows.step_peak_bytes=+0")
    assert (
        code == 1 and "over     rows.step_peak_bytes=+0  llama.rows.step_peak_bytes: 8.00 MiB -> 8.00 MiB (+40 B" in out
    )
    assert status(capsys, *files, "--max-change", "rows.step_peak_bytes=+40")[0] == 0
    code, _, err = status(capsys, *files, "--max-change", "step_peak_bytes=+40")
    assert (
        code == 2 and "the end of 5 names: llama.floor.step_peak_bytes, " in err and "*.step_peak_bytes for all" in err
    )
    outcomes = {verdict.name: verdict.outcome for verdict in compare(*files, limits=["*.step_peak_bytes=+40"]).verdicts}
    assert outcomes == {
        "llama.floor.step_peak_bytes": "within",
        "llama.lora.step_peak_bytes": "missing",
        "llama.rows.step_peak_bytes": "within",
        "llama.shira.step_peak_bytes": "missing",
        "llama.dora.step_peak_bytes": "missing",
    }


def test_one_method_in_two_shapes(tmp_path):
    rows = [row("rows"), row("rows", shape="bert", flops=7)]
    comparison = compare(*(write(tmp_path / name / "step.json", rows) for name in "ab"), limits=["*.rows.flops=0"])
    assert [(verdict.name, verdict.outcome) for verdict in comparison.verdicts] == [
        ("llama.rows.flops", "within"),
        ("bert.rows.flops", "within"),
    ]


def test_importance_metrics_of_the_selection_benchmark(tmp_path):
    def made(name, seconds, limit_bytes):
        rows = [{"metric": "l2", "needs": "weights", "peak_bytes": MIB, "peak_over_step": 0.1, "seconds": seconds}]
        result = {"rows": rows, "shape": name, "calibration_batches": 2, "step_peak_bytes": limit_bytes}
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
        return str(tmp_path / f"{name}.json")

    comparison = compare(made("llama", 0.5, 8 * MIB), made("bert", 0.75, 9 * MIB))
    assert comparison.settings == {"shape": {"a": "llama", "b": "bert"}}
    assert {n.name: n.difference for n in comparison.numbers} == {
        "step_peak_bytes": MIB,
        "l2.peak_bytes": 0,
        "l2.seconds": 0.25,
    }


def test_a_benchmark_number_that_is_nan(tmp_path):
    paths = [
        write(tmp_path / n / "step.json", [row("rows", step_seconds_median=v)])
        for n, v in (("a", 1.0), ("b", float("nan")))
    ]
    comparison = compare(*paths, limits=["step_seconds_median=+1000%"])
    assert comparison.verdicts[0].outcome == "missing"
    assert "B: nan or infinite: llama.rows.step_seconds_median" in shown(comparison)


def test_files_that_cannot_be_compared(pair, files, tmp_path):
    store, lora, _ = pair
    good, _ = files
    with pytest.raises(UserError, match=r"^A \(.*\) is a run and B \(.*step\.json\) is a benchmark's file; give two"):
        compare(lora, good, store.root)
    with pytest.raises(UserError, match=r"have no measured method in common \(A: llama\.floor, .*; B: bert\.rows\)"):
        compare(good, write(tmp_path / "bert" / "step.json", [row("rows", shape="bert")]))
    with pytest.raises(UserError, match=r"none\.json: no such file; expected a file that one of benchmarks"):
        compare(good, str(tmp_path / "none.json"))
    with pytest.raises(UserError, match="give the run's folder, "):
        compare(good, str(store.root / lora / "record.json"))
    with pytest.raises(UserError, match=r"two rows are llama\.rows"):
        compare(good, write(tmp_path / "double" / "step.json", [row("rows"), row("rows")]))
    for content, said in (
        ('{"rows": [', "not JSON"),
        ("\xff", "not JSON"),
        ("[]", "no list of `rows`"),
        ('{"rows": []}', "no list of `rows`"),
        ('{"rows": [{"flops": 1}]}', "row 1 names no method or metric"),
        ('{"rows": [{"method": "a"}], "settings": 3}', "settings is no mapping"),
    ):
        path = tmp_path / "bad.json"
        path.write_bytes(content.encode("latin-1"))
        with pytest.raises(UserError, match=said) as error:
            compare(good, str(path))
        assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_a_narrow_terminal_cuts_nothing_off(pair):
    text = shown(compared(pair, "train.peak_allocated_bytes=+0"), width=100)
    assert "…" not in text and f"{COSTS['lora'][1]:.2f} MiB" in text
    assert "within   train.peak_allocated_bytes=+0  memory.train.peak_allocated_bytes: 441.25 MiB -> 402.50 MiB" in text


def test_torch_is_never_imported(pair):
    store, lora, rows = pair
    code = (
        "import sys; from rowsft import cli\n"
        f"try: cli.main(['compare', {lora!r}, {rows!r}, '--store', {str(store.root)!r}])\n"
        "except SystemExit as ended: assert ended.code == 0\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize("stored", sorted((Path(__file__).parents[2] / "benchmarks/results").rglob("*.json")))
def test_every_stored_benchmark_can_be_compared(stored):
    comparison = compare(str(stored), str(stored))
    assert comparison.numbers and all(number.difference in (0, None) for number in comparison.numbers)
    assert "failed" not in shown(comparison)
