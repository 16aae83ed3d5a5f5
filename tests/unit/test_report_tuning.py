"""`rowsft tune`: the best rate of each method, and of each of its settings where there are several."""

import pytest
from report_factory import config, fail, finish, outcomes

from rowsft import report
from rowsft.errors import UserError
from rowsft.report.tuning import best_learning_rates
from rowsft.store import Store


def plant(store, method, rates, seeds=(1,), **changes):
    for rate, validation in rates.items():
        for seed in seeds:
            finish(store, outcomes(50), method=method, rate=rate, seed=seed, validation=validation, **changes)


def said(store):
    table, block = best_learning_rates(store.root, "demo").split("\n\n")
    return table.splitlines(), block.splitlines()


def test_the_best_rate_of_every_method_is_ready_to_paste(tmp_path):
    store = Store(tmp_path)
    plant(store, "lora", {1e-4: 0.6, 1e-3: 0.7}, seeds=(1, 2), task="sentiment")
    plant(store, "row_sft", {1e-3: 0.8, 1e-2: 0.8}, task="sentiment")
    error = {"type": "TrainingDiverged", "message": "nan", "traceback": None, "phase": "train"}
    fail(store, "failed", error, method="lora", rate=1e-2, task="sentiment")
    table, block = said(store)
    assert table[0].startswith("validation accuracy by learning rate (7 runs,")
    assert {line.split()[0]: line.split()[1:] for line in table[1:]} == {
        "method": ["0.0001", "0.001", "0.01"],
        "lora": ["0.6000", "0.7000", "failed"],
        "row_sft": ["-", "0.8000", "0.8000"],
    }
    assert sorted(block) == sorted(["tuned:", "  learning_rate:", "    lora: 0.001", "    row_sft: 0.001"])


def test_budgets_are_not_averaged_over(tmp_path):
    store = Store(tmp_path)
    plant(store, "lora", {1e-4: 0.9, 1e-3: 0.1}, task="sentiment", budget={"rows": 2})
    plant(store, "lora", {1e-4: 0.2, 1e-3: 0.5}, task="sentiment", budget={"rows": 16})
    plant(store, "full", {1e-4: 0.4, 1e-3: 0.3}, task="sentiment")
    table, block = said(store)
    cells = {line.rsplit(maxsplit=2)[0]: line.split()[-2:] for line in table[2:]}
    assert cells == {
        "lora (rows=2)": ["0.9000", "0.1000"],
        "lora (rows=16)": ["0.2000", "0.5000"],
        "full": ["0.4000", "0.3000"],
    }
    (line,) = [line for line in block if "lora" in line]
    assert line.startswith("    # lora: no one rate is the best: ")
    assert "0.0001 at rows=2" in line and "0.001 at rows=16" in line and "    full: 0.0001" in block


def test_a_run_without_a_validation_score_is_named(tmp_path, caplog):
    store = Store(tmp_path)
    plant(store, "lora", {1e-4: False}, task="sentiment")
    with pytest.raises(UserError, match=r"run \w{12} has no validation score"):
        best_learning_rates(tmp_path, "demo")
    assert not caplog.messages, "said once"
    plant(store, "full", {1e-4: 0.5}, task="sentiment")
    assert "full: 0.0001" in best_learning_rates(tmp_path, "demo")
    assert len(caplog.messages) == 1 and "has no validation score" in caplog.messages[0]


def test_where_every_rate_failed_none_is_the_best(tmp_path):
    store = Store(tmp_path)
    error = {"type": "TrainingDiverged", "message": "nan", "traceback": None, "phase": "train"}
    for rate in (1e-3, 1e-2):
        fail(store, "failed", error, method="lora", rate=rate, task="sentiment")
    plant(store, "full", {1e-4: 0.5}, task="sentiment")
    _, block = said(store)
    assert "    # lora: failed at every rate" in block and "    full: 0.0001" in block


def test_a_grid_of_which_nothing_has_ended_is_one_line(tmp_path):
    with Store(tmp_path).open(config(task="sentiment")):
        pass
    with pytest.raises(UserError, match="experiment 'demo': none of its runs has ended"):
        best_learning_rates(tmp_path, "demo")


def test_the_reports_grid_says_which_budget_a_rate_belongs_to(tmp_path):
    store = Store(tmp_path)
    for rows, best in ((2, 1e-4), (16, 1e-3)):
        rates = {rate: 0.9 if rate == best else 0.5 for rate in (1e-4, 1e-3)}
        plant(store, "lora", rates, task="sentiment", budget={"rows": rows})
    (section,) = report.sections(store.root, "demo")
    assert [(line.title, line.learning_rate, line.chosen) for line in section.rates] == [
        ("LoRA (rows=2, learning_rate=0.0001)", 1e-4, True),
        ("LoRA (rows=2)", 1e-3, False),
        ("LoRA (rows=16)", 1e-4, False),
        ("LoRA (rows=16, learning_rate=0.001)", 1e-3, True),
    ]
