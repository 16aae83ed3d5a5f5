"""Methods whose size no budget sets: listed apart, and not judged by the budget."""

import pytest
from report_factory import COSTS, config, outcomes, status

from rowsft import report
from rowsft.method_info import info_of, to_record
from rowsft.methods.base import method_class
from rowsft.report.budget_curves import charts
from rowsft.report.markdown import markdown
from rowsft.report.tables import main, terminal_main
from rowsft.store import Store

LORA = COSTS["lora"][0]
BASE = 22_713_216


def plant(store, name, adapter, asked=None, seed=1, rows=None, dropout=None, right=70):
    """A finished run with the metadata that the method states."""
    group = {"_target_": f"baselines.{name}.Method", "name": name}
    if dropout is not None:
        group["dropout"] = dropout
    with store.open(config(method=group, seed=seed, task="sentiment", rate=1e-3, budget={"rows": rows})) as run:
        attempt = run.begin(method_info=to_record(info_of(method_class(name)())))
        attempt.update(
            primary_metric="accuracy",
            metrics={"test": {"accuracy": right / 100}},
            parameters={
                "adapter": adapter,
                "head": 385,
                "base": BASE,
                "budget_asked": asked,
                "budget_achieved": adapter,
            },
        )
        attempt.write_predictions(outcomes(right))
        attempt.finish("done")


@pytest.fixture
def store(tmp_path):
    """LoRA and row-SFT at one budget, two methods of fixed size, and full fine-tuning with the head alone."""
    store = Store(tmp_path)
    plant(store, "lora", LORA, LORA, dropout=0.0)
    plant(store, "row_sft", LORA, LORA, dropout=0.0)
    plant(store, "ia3", 18_432)
    plant(store, "vera", LORA // 2, dropout=0.0)
    plant(store, "full", BASE - 385)
    plant(store, "head", 0)
    return store


def section_of(store):
    (section,) = report.sections(store.root, "demo")
    return section


def test_a_fixed_size_is_said_in_table_note_and_contract(store):
    section = section_of(store)
    assert [line.title for line in section.lines][-2:] == ["VeRA", "IA3"]
    text = markdown(section)
    cells = {row[0]: row for row in main(section).rows}
    assert cells["IA3"][2] == cells["VeRA"][2] == "fixed by the method"
    assert cells["full fine-tuning"][2] == cells["head only"][2] == "–"
    off = next(column for column in terminal_main(section, section.lines).columns if column.title == "off")
    shown = {line.title: off.cell(line) for line in section.lines}
    assert (shown["IA3"], shown["LoRA"], shown["full fine-tuning"]) == ("fixed", "+0.00 %", "–")
    (note,) = [line for line in text.splitlines() if line.startswith("- Trainable parameters that the method")]
    assert "(others were given 221,184): VeRA 110,592 (0.5 × the budget), IA3 18,432 (0.083 × the budget)." in note
    assert "full" not in note and "head" not in note
    budget = status(section, "budget")
    assert budget.status == "met"
    assert "not judged, since the method fixes its size: VeRA 110,592 (0.5 × the budget), IA3" in budget.detail


def test_nothing_is_said_where_no_such_method_stands(tmp_path):
    store = Store(tmp_path)
    plant(store, "lora", LORA, LORA)
    plant(store, "full", BASE - 385)
    section = section_of(store)
    assert "fixe" not in markdown(section) and "fixe" not in status(section, "budget").detail


def test_at_several_budgets_it_is_one_row_and_a_point_of_its_own(store):
    for rows, size in ((2, 10_000), (4, 20_000)):
        plant(store, "lora", size, size, rows=rows)
    plant(store, "ia3", 18_432, rows=4)
    section = section_of(store)
    assert [line.title for line in section.lines].count("IA3") == 1
    assert "(others were given 10,000, 20,000, 221,184): VeRA 110,592, IA3 18,432." in markdown(section)
    drawn = [svg for _, svg in charts(section.budgets)]
    assert drawn and all(b"IA3 (size fixed)" in svg and b"full fine-tuning (no budget)" in svg for svg in drawn)


def test_a_dropout_of_its_own_breaks_the_contract_and_none_does_not(store):
    assert status(section_of(store), "dropout").status == "met"
    plant(store, "vera", LORA // 2, dropout=0.1, seed=2)
    assert status(section_of(store), "dropout").status == "not met"


def test_a_method_that_cannot_drop_anything_shares_the_dropout_of_those_that_drop_nothing(tmp_path):
    store = Store(tmp_path)
    plant(store, "lora", LORA, LORA, dropout=0.0)
    plant(store, "shira", LORA, LORA)
    assert status(section_of(store), "dropout").status == "met"
    plant(store, "dora", LORA, LORA, dropout=0.1)
    assert status(section_of(store), "dropout").status == "not met"


def test_a_method_without_dropout_beside_one_that_drops_breaks_the_contract(tmp_path):
    store = Store(tmp_path)
    plant(store, "lora", LORA, LORA, dropout=0.1)
    plant(store, "shira", LORA, LORA)
    assert status(section_of(store), "dropout").status == "not met"
