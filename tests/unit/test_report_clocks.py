"""Where the time and the energy went."""

from report_factory import classification, finish, section_of

from rowsft import report
from rowsft.record import Energy, Seconds
from rowsft.report import tables
from rowsft.report.markdown import markdown
from rowsft.store import Store


def test_where_the_time_went(built):
    section = section_of(built, "stsb")
    (sheet,) = [sheet for sheet in tables.blocks(section) if sheet.title.startswith("Where the time went")]
    headings = [column.heading for column in sheet.columns]
    rows = [dict(zip(headings, row, strict=True)) for row in sheet.rows]
    lora = next(row for row in rows if row["method"] == "LoRA")
    # Three seeds: the median's offset is that of seed 2.
    assert lora["step ms [p25, p75]"] == "702.0 [630.0, 770.0]"
    assert (lora["read data"], lora["load model"], lora["train"]) == ("0.50", "2.00", "70.00")
    assert lora["waiting for data"] == "0.25"
    assert next(row for row in rows if row["method"] == "no training")["step ms [p25, p75]"] == "–"
    assert not any("energy" in heading for heading in headings), "no GPU counted it"


def test_energy_is_a_column_where_a_gpu_counted_it(tmp_path):
    store = Store(tmp_path / "runs")
    finish(store, classification("lora", 1), method="lora", seed=1, task="sentiment")
    with store._reopen(store.runs()[0].id) as run:
        run.put(run.record.result.changed(energy=Energy(kind="nvml_whole_gpu", train_joules=12_345.0)))
    (section,) = report.sections(tmp_path / "runs", "demo")
    assert section.lines[0].train_joules == 12_345.0
    assert "| training energy kJ |" in markdown(section) and "| 12.35 |" in markdown(section)


def test_selection_costs_what_scoring_cost_and_not_reading_kept_scores(tmp_path):
    store = Store(tmp_path / "runs")
    for seed, kept in ((1, False), (2, True)):
        finish(store, classification("row_sft", seed), method="row_sft", seed=seed, task="sentiment")
        record = next(record for record in store.runs() if record.config["seed"] == seed)
        with store._reopen(record.id) as run:
            seconds = Seconds(select=0.01 if kept else 7.0)
            run.put(run.record.result.changed(scores_from_cache=kept, seconds=seconds))
    (section,) = report.sections(tmp_path / "runs", "demo")
    assert section.lines[0].select_seconds == 7.0 and section.lines[0].seeds == 2
    assert "read the scores that those had kept" in markdown(section)
