"""The report of a store: rows, ratios, contract, files. Its statistics: test_report_statistics.py."""

import csv
import io
import json
import logging
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.image import imread
from report_factory import ENVIRONMENT, classification, config, fail, fill, finish, metric_of, regression, status
from rich.console import Console
from scipy import stats

from rowsft import report
from rowsft.errors import UserError
from rowsft.report import listing, memory, tables
from rowsft.store import Store


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    store = fill(root / "runs")
    return store, report.build(root / "runs", "demo", root / "out")


def section_of(built, task):
    return next(part for part in built[1].sections if part.table.task == task)


def line_of(section, method):
    return next(line for line in section.lines if line["method"] == method)


def test_one_table_a_task_with_the_methods_in_order(built):
    assert [(part.table.task, part.table.model) for part in built[1].sections] == [
        ("sentiment", "minilm"),
        ("stsb", "minilm"),
    ]
    assert [line["method"] for line in section_of(built, "stsb").lines] == [
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
    assert (line["value"], line["low"], line["high"]) == pytest.approx((np.mean(values), low, high))
    assert line["seeds"] == 3 and line["test_pearson"] == pytest.approx(np.mean(values))
    assert line["validation_pearson"] == pytest.approx(np.mean(values) + 0.02)
    assert line["train_peak_allocated_bytes"] == 402.5 * 2**20 and line["select_peak_allocated_bytes"] == 123 * 2**20
    assert line["train_peak_to_lora"] == pytest.approx(402.5 / 441.25)
    assert line["step_median_seconds"] == pytest.approx(0.612) and line["step_to_lora"] == pytest.approx(0.612 / 0.702)
    assert (line["budget_asked"], line["budget_achieved"]) == (221_184, 221_184)
    assert line_of(section_of(built, "stsb"), "dora")["budget_off_percent"] == pytest.approx(
        100 * (220608 / 221184 - 1)
    )
    assert line["differs_in"] == "learning_rate=0.001"


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
    assert [line[key] for key in missing] == [None] * 5
    assert line["interval"] == "95 % test-set interval, one seed"
    assert tables.main_columns(section.table, line)["training peak MiB"] == tables.NONE


def test_paired_difference_to_lora(built):
    line = line_of(section_of(built, "sentiment"), "row_sft")
    mine, other = (classification(method, 1) for method in ("row_sft", "lora"))
    gaps = [(a["prediction"] == a["label"]) - (b["prediction"] == b["label"]) for a, b in zip(mine, other, strict=True)]
    assert line["minus_lora"] == pytest.approx(np.mean(gaps))
    assert line["minus_lora_low"] < line["minus_lora"] < line["minus_lora_high"] and line["minus_lora_examples"] == 400
    assert line_of(section_of(built, "sentiment"), "lora")["minus_lora"] is None


def test_runs_without_a_result_stay_with_their_reason(built):
    found = {entry["method"]: entry for entry in section_of(built, "stsb").unfinished}
    assert found["dora"]["state"] == "failed" and found["dora"]["reason"] == "TrainingDiverged: loss is nan at step 12"
    assert found["full"]["state"] == "oom" and found["full"]["seed"] == 3
    assert "| oom | train | OutOfMemoryError: tried to allocate 2 GiB &lt;b> |" in built[1].markdown.read_text()


def run_with(store, state, memory, error=None):
    with store.open(config(seed=len(store.runs()))) as run:
        attempt = run.begin(environment=ENVIRONMENT)
        attempt.update(memory=memory)
        attempt.finish(state, error=error)
    return run.id


def test_memory_shows_what_there_is(tmp_path):
    """Whether the run trained or not, was probed or not, and wherever it ended."""
    store = Store(tmp_path)
    loaded = {"peak_bytes": 3 * 2**20, "parts": {"base_weights": 3 * 2**20}, "measured_peak_bytes": None}
    ledger = {"load": loaded | {"unattributed_bytes": None}}
    untrained = run_with(store, "done", {"train": None, "ledger": ledger})
    table, said = memory.build(tmp_path, untrained, None)
    assert [column.header for column in table.columns] == ["MiB at the peak", "load"]
    assert said == ["no picture: nothing was trained"]

    unprobed = run_with(store, "done", {"train": {"resident_peak_bytes": 5}, "ledger": ledger})
    _, said = memory.build(tmp_path, unprobed, None)
    assert said == ["no picture: no training step was entered; run it with trainer.memory_probe_steps=1 and --rerun"]

    reached = {"peak_allocated_bytes": 7 * 2**30, "peak_reserved_bytes": 2**33, "process_peak_bytes": None}
    error = {"type": "OutOfMemoryError", "message": "no room\nfor it", "traceback": "t", "phase": "data"}
    table, said = memory.build(tmp_path, run := run_with(store, "oom", {"load": reached}, error), None)
    assert table is None
    assert said == [
        f"run {run} ended as oom in data: OutOfMemoryError: no room",
        "by then: 7,168.0 MiB allocated, 8,192.0 MiB reserved",
        "no picture: a training step is entered once all else is done",
    ]
    with pytest.raises(UserError, match="has no memory ledger; run it with trainer.memory_probe_steps=1"):
        memory.build(tmp_path, run_with(store, "done", {}), None)


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
    assert [(line["title"], line["seeds"]) for line in lines] == [
        ("row-SFT (importance=l2)", 2),
        ("row-SFT (importance=taylor)", 2),
    ]


def test_how_inputs_are_had_tells_rows_of_a_method_apart_and_breaks_no_contract(tmp_path):
    """It trades memory for time, so "differs in" has it where a method has it; older records read as they did."""
    store, group = Store(tmp_path), config(method="row_sft")["method"]
    finish(store, regression("lora", 1))
    finish(store, regression("row_sft", 1), method=group)
    before = report.sections(tmp_path, "demo")[0]
    assert [line["title"] for line in before.lines] == ["row-SFT", "LoRA"]
    for recompute in (True, False):
        finish(store, regression("row_sft", 1), method={**group, "recompute_inputs": recompute})
    section = report.sections(tmp_path, "demo")[0]
    assert [line["title"] for line in section.lines] == [
        "row-SFT (recompute_inputs=False)",
        "row-SFT (recompute_inputs=None)",
        "row-SFT (recompute_inputs=True)",
        "LoRA",
    ]
    told = [[part for part in line["differs_in"].split(", ") if "inputs" in part] for line in section.lines]
    assert told == [["recompute_inputs=False"], [], ["recompute_inputs=True"], []]
    assert [(c.key, c.status) for c in section.conditions] == [(c.key, c.status) for c in before.conditions]


def test_csv_files_round_trip(built):
    store, files = built
    with files.runs.open(newline="") as stream:
        rows = {row["id"]: row for row in csv.DictReader(stream)}
    assert set(rows) == {record.id for record in store.runs()}
    record = next(r for r in store.runs() if r.result and r.config["method"]["name"] == "dora")
    row = rows[record.id]
    assert float(row["memory.train.peak_allocated_bytes"]) == 566 * 2**20
    assert float(row["config.trainer.learning_rate"]) == 3e-4 and json.loads(row["knobs"]) == record.result["knobs"]
    assert {row["state"] for row in rows.values()} == {"done", "failed", "oom"} and "traceback" not in str(rows)
    with files.table.open(newline="") as stream:
        table = list(csv.DictReader(stream))
    expected = [line for part in files.sections for line in part.lines]
    assert [float(row["value"]) for row in table if row["state"] == "done"] == [line["value"] for line in expected]
    assert [row["reason"] for row in table if row["state"] == "failed"] == ["TrainingDiverged: loss is nan at step 12"]


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
    assert parser.open == [] and len(parser.links) == 2
    assert all(link.startswith("data:image/png;base64,") for link in parser.links) and "http" not in html
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
    assert html.count("<polyline") == 10


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


def test_a_damaged_record_is_left_out_with_a_warning(tmp_path, caplog):
    store = Store(tmp_path)
    good, bad = finish(store, regression("lora", 1)), finish(store, regression("row_sft", 1), method="row_sft")
    (tmp_path / bad / "record.json").write_text('{"schema_version"')
    with caplog.at_level(logging.WARNING):
        (section,) = report.sections(tmp_path)
    assert [line["runs"] for line in section.lines] == [good] and bad in caplog.text and caplog.text.count("\n") == 1


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


def test_the_list_of_runs(built):
    store = built[0]
    listed = listing.runs_list(store, "demo")
    assert json.loads(json.dumps(listed)) == listed and len(listed) == len(store.runs())
    oom = next(run for run in listed if run["state"] == "oom")
    assert oom["value"] is None and oom["reason"].startswith("OutOfMemoryError") and oom["attempts"] == 1
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(listing.runs_table(store))
    shown = console.export_text()
    assert oom["id"] in shown and "19 done, 1 failed, 1 oom" in shown and "[" not in shown.replace("[bold]", "")
    assert listing.runs_list(store, "other") == []


def test_torch_is_never_imported(tmp_path):
    finish(Store(tmp_path / "runs"), classification("lora", 1), task="sentiment")
    code = (
        "import sys; from rowsft import report; from rowsft.report import listing;"
        f"assert report.build({str(tmp_path / 'runs')!r}, 'demo', {str(tmp_path / 'out')!r}).picture;"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_repetition_that_did_not_finish_leaves_the_run_done(tmp_path):
    store = Store(tmp_path / "runs")
    finish(store, classification("lora", 1), task="sentiment")
    config = store.runs()[0].config
    with pytest.raises(KeyboardInterrupt), store.open(config) as run:
        run.begin()
        raise KeyboardInterrupt
    (listed,) = listing.runs_list(store)
    assert store.runs()[0].state == "interrupted"
    assert listed["state"] == "done" and listed["value"] is not None and listed["attempts"] == 2
    assert listed["reason"] == "attempt 2 interrupted"
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(listing.runs_table(store))
    assert f"{listed['metric']} {listed['value']:.4f}; attempt 2 interrupted" in console.export_text()


def test_where_the_time_went(built):
    section = section_of(built, "stsb")
    (rows,) = [rows for title, rows in tables.blocks(section) if title.startswith("Where the time went")]
    lora = next(row for row in rows if row["method"] == "LoRA")
    # Three seeds: the median's offset is that of seed 2.
    assert lora["step ms [p25, p75]"] == "702.0 [630.0, 770.0]"
    assert (lora["read data"], lora["load model"], lora["train"]) == ("0.50", "2.00", "70.00")
    assert lora["waiting for data"] == "0.25"
    assert next(row for row in rows if row["method"] == "no training")["step ms [p25, p75]"] == "–"
    assert not any("energy" in column for row in rows for column in row), "no GPU counted it"


def test_energy_is_a_column_where_a_gpu_counted_it(tmp_path):
    store = Store(tmp_path / "runs")
    finish(store, classification("lora", 1), method="lora", seed=1, task="sentiment")
    with store._reopen(store.runs()[0].id) as run:
        run._raw["attempts"][-1]["energy"] = {"kind": "nvml_whole_gpu", "train_joules": 12_345.0}
        run.write()
    (section,) = report.sections(tmp_path / "runs", "demo")
    assert section.lines[0]["train_joules"] == 12_345.0
    assert "| training energy kJ |" in tables.markdown(section) and "| 12.35 |" in tables.markdown(section)


def test_selection_costs_what_scoring_cost_and_not_reading_kept_scores(tmp_path):
    store = Store(tmp_path / "runs")
    for seed, kept in ((1, False), (2, True)):
        finish(store, classification("row_sft", seed), method="row_sft", seed=seed, task="sentiment")
        record = next(record for record in store.runs() if record.config["seed"] == seed)
        with store._reopen(record.id) as run:
            run._raw["attempts"][-1] |= {"scores_from_cache": kept, "seconds": {"select": 0.01 if kept else 7.0}}
            run.write()
    (section,) = report.sections(tmp_path / "runs", "demo")
    assert section.lines[0]["select_seconds"] == 7.0 and section.lines[0]["seeds"] == 2
    assert "read the scores that those had kept" in tables.markdown(section)
