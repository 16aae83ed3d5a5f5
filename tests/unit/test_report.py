"""The report of a store: rows, ratios, contract, files. Its statistics: test_report_statistics.py."""

import logging

import numpy as np
import pytest
from report_factory import classification, config, finish, metric_of, regression, section_of, status
from scipy import stats

from rowsft import report
from rowsft.output.quantities import NONE
from rowsft.report import tables
from rowsft.store import Store


def line_of(section, method):
    return next(line for line in section.lines if line.method == method)


def test_one_table_a_task_with_the_methods_in_order(built):
    assert [(part.table.task, part.table.model) for part in built[1].sections] == [
        ("sentiment", "minilm"),
        ("stsb", "minilm"),
    ]
    assert [line.method for line in section_of(built, "stsb").lines] == [
        "none",
        "head",
        "row_sft",
        "lora",
        "dora",
        "full",
    ]


def test_metric_interval_and_costs_of_a_row(built):
    line = line_of(section_of(built, "stsb"), "row_sft")
    values = [metric_of(regression("row_sft", seed), "stsb")[1] for seed in (1, 2, 3)]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert (line.value, line.estimate.low, line.estimate.high) == pytest.approx((np.mean(values), low, high))
    assert line.seeds == 3 and line.metrics["test_pearson"] == pytest.approx(np.mean(values))
    assert line.metrics["validation_pearson"] == pytest.approx(np.mean(values) + 0.02)
    assert line.train_peak_allocated_bytes == 402.5 * 2**20 and line.select_peak_allocated_bytes == 123 * 2**20
    assert line.train_peak_to_lora == pytest.approx(402.5 / 441.25)
    assert line.step_median_seconds == pytest.approx(0.612) and line.step_to_lora == pytest.approx(0.612 / 0.702)
    assert (line.budget_asked, line.budget_achieved) == (221_184, 221_184)
    assert line_of(section_of(built, "stsb"), "dora").budget_off_percent == pytest.approx(100 * (220608 / 221184 - 1))
    assert line.differs_in == "learning_rate=0.001"


def test_what_was_not_measured_is_none_and_shown_as_a_dash(built):
    section = section_of(built, "stsb")
    line = line_of(section, "none")
    missing = (
        "train_peak_allocated_bytes",
        "step_median_seconds",
        "learning_rate",
        "train_peak_to_lora",
        "budget_asked",
    )
    assert [getattr(line, key) for key in missing] == [None] * 5
    assert line.estimate.covers == "95 % test-set interval, one seed"
    sheet = tables.main(section)
    (peak,) = [column for column in sheet.columns if column.heading == "training peak MiB"]
    assert peak.cell(line) == NONE


def test_paired_difference_to_lora(built):
    line = line_of(section_of(built, "sentiment"), "row_sft")
    mine, other = (classification(method, 1) for method in ("row_sft", "lora"))
    gaps = [(a["prediction"] == a["label"]) - (b["prediction"] == b["label"]) for a, b in zip(mine, other, strict=True)]
    assert line.minus_lora.value == pytest.approx(np.mean(gaps))
    assert line.minus_lora.low < line.minus_lora.value < line.minus_lora.high and line.minus_lora.examples == 400
    assert line_of(section_of(built, "sentiment"), "lora").minus_lora is None


def test_runs_without_a_result_stay_with_their_reason(built):
    found = {run.method: run for run in section_of(built, "stsb").unfinished}
    assert found["dora"].state == "failed" and found["dora"].reason == "TrainingDiverged: loss is nan at step 12"
    assert found["full"].state == "oom" and found["full"].seed == 3
    assert "| oom | train | OutOfMemoryError: tried to allocate 2 GiB &lt;b> |" in built[1].markdown.read_text()


def test_the_contract_is_computed(built):
    section = section_of(built, "stsb")
    assert {c.key: c.status for c in section.conditions} == {
        "base_weights": "met",
        "data_order": "not met",
        "target_modules": "met",
        "budget": "met",
        "dropout": "met",
        "adapter_dtype": "not recorded",
        "optimizer": "met",
        "steps": "met",
        "label_masking": "met",
        "evaluation": "met",
        "learning_rate": "not recorded",
        "seeds": "not met",
        "machine": "met",
    }
    assert status(section, "seeds").detail == "the least is 2"
    assert "-0.26 %" in status(section, "budget").detail


def test_variants_of_a_method_are_rows_of_their_own_and_seeds_inside_a_method_are_not(tmp_path):
    store = Store(tmp_path)
    for importance in ("l2", "taylor"):
        for seed in (1, 2):
            method = {**config(method="row_sft")["method"], "importance": importance, "seed": seed}
            finish(store, regression("row_sft", seed), method=method, seed=seed)
    lines = report.sections(tmp_path, "demo")[0].lines
    assert [(line.title, line.seeds) for line in lines] == [
        ("row-SFT (importance=l2)", 2),
        ("row-SFT (importance=taylor)", 2),
    ]


def test_how_inputs_are_had_tells_rows_of_a_method_apart_and_breaks_no_contract(tmp_path):
    """It trades memory for time, so "differs in" has it where a method has it; older records read as they did."""
    store, group = Store(tmp_path), config(method="row_sft")["method"]
    finish(store, regression("lora", 1))
    finish(store, regression("row_sft", 1), method=group)
    before = report.sections(tmp_path, "demo")[0]
    assert [line.title for line in before.lines] == ["row-SFT", "LoRA"]
    for recompute in (True, False):
        finish(store, regression("row_sft", 1), method={**group, "recompute_inputs": recompute})
    section = report.sections(tmp_path, "demo")[0]
    assert [line.title for line in section.lines] == [
        "row-SFT (recompute_inputs=false)",
        "row-SFT (recompute_inputs=null)",
        "row-SFT (recompute_inputs=true)",
        "LoRA",
    ]
    told = [[part for part in line.differs_in.split(", ") if "inputs" in part] for line in section.lines]
    assert told == [["recompute_inputs=false"], [], ["recompute_inputs=true"], []]
    assert [(c.key, c.status) for c in section.conditions] == [(c.key, c.status) for c in before.conditions]


def test_a_damaged_record_is_left_out_with_a_warning(tmp_path, caplog):
    store = Store(tmp_path)
    good, bad = finish(store, regression("lora", 1)), finish(store, regression("row_sft", 1), method="row_sft")
    (tmp_path / bad / "record.json").write_text('{"schema_version"')
    with caplog.at_level(logging.WARNING):
        (section,) = report.sections(tmp_path)
    assert [line.runs for line in section.lines] == [good] and bad in caplog.text and caplog.text.count("\n") == 1
    # Whoever reads the files alone must know it, too.
    files = report.build(tmp_path, out=tmp_path / "out")
    said = f"1 run of the store has a record that cannot be read, in no table here: {bad}"
    assert said in files.markdown.read_text() and said in files.page.read_text()
    (tmp_path / bad / "record.json").unlink()
    files = report.build(tmp_path, out=tmp_path / "out")
    assert "cannot be read" not in files.markdown.read_text() + files.page.read_text()


def test_forgetting_has_columns_where_a_run_was_asked(built, tmp_path):
    store = Store(tmp_path / "runs")
    for seed, after in ((1, 3.5), (2, 3.25)):
        finish(
            store,
            classification("lora", seed),
            seed=seed,
            task="sentiment",
            forgetting={
                "before": {"loss": 3.0},
                "after": {"loss": after},
                "csd_rel": 0.001 * seed,
                "csd_rel_layers": {"model.layers.0.self_attn.q_proj": 0.25},
            },
        )
    finish(store, classification("row_sft", 1), method="row_sft", task="sentiment")
    files = report.build(tmp_path / "runs", "demo", tmp_path / "out")
    (section,) = files.sections
    by_method = {line.method: line for line in section.lines}
    lora, other = by_method["lora"], by_method["row_sft"]
    assert (lora.general_loss_before, lora.general_loss_after, lora.forgetting) == (3.0, 3.375, 0.375)
    assert lora.csd_rel == pytest.approx(0.0015) and other.forgetting is None and other.csd_rel is None
    for sheet in (tables.main(section), tables.terminal_main(section, section.lines)):
        cells = {
            column.key: [column.cell(line) for line in (lora, other)]
            for column in sheet.columns
            if column.key in ("forgetting", "csd_rel")
        }
        assert cells == {"forgetting": ["+0.3750", NONE], "csd_rel": ["0.0015", NONE]}
    for part in built[1].sections:
        assert not {"forgetting", "csd_rel"} & {column.key for column in tables.main(part).columns}
    header, *rows = files.runs.read_text().splitlines()
    assert "forgetting.before.loss" in header and "forgetting.csd_rel_layers.model" not in header
