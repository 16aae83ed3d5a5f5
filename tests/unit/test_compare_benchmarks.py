"""Two benchmark files held against each other."""

import json
from pathlib import Path

import pytest
from compare_factory import MIB, cells, lora_and_rows, number, put, row, shown, status, write

from rowsft.errors import UserError
from rowsft.report.compare import compare


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return lora_and_rows(tmp_path_factory.mktemp("compare") / "runs")


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


def test_a_channel_is_matched_by_its_former_name(tmp_path):
    older = write(tmp_path / "before" / "step.json", [row("half"), row("neuron"), row("row_sft in")])
    newer = write(tmp_path / "after" / "step.json", [row("both"), row("neurons"), row("row_sft columns")])
    comparison = compare(older, newer)
    for method in ("both", "neurons", "row_sft columns"):
        assert number(comparison, f"llama.{method}.flops").difference == 0


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


def test_settings_that_are_nan_are_null_in_json(tmp_path, capsys):
    paths = [
        write(tmp_path / n / "step.json", [row("rows")], settings={"rate": v}) for n, v in (("a", 1), ("b", "nan"))
    ]
    put(tmp_path / "b" / "step.json", '"nan"', "NaN")
    code, out, _ = status(capsys, *paths, "--json")

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    assert code == 0 and json.loads(out, parse_constant=refuse)["settings"] == {"rate": {"a": 1, "b": None}}
    assert cells(shown(compare(*paths)), "rate") == ["1", "NaN"]


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


RESULTS = sorted((Path(__file__).parents[2] / "benchmarks/results").rglob("*.json"))


# gpu.json is the list of a GPU's stages, whose results stand beside it.
@pytest.mark.parametrize("stored", [path for path in RESULTS if path.name != "gpu.json"], ids=lambda path: path.stem)
def test_every_stored_benchmark_can_be_compared(stored):
    comparison = compare(str(stored), str(stored))
    assert comparison.numbers and all(number.difference in (0, None) for number in comparison.numbers)
    assert "failed" not in shown(comparison)
