"""A report of a tuned sweep: how rates were chosen, what that cost, what of it falls short, and lines over budgets."""

import csv
import re

import numpy as np
import pytest
from report_factory import config, finish, outcomes, status
from tuned_factory import LINES, LR, TUNE, method, plant, validation

from rowsft import report
from rowsft.report.notes import notes
from rowsft.report.tables import blocks, by_budget, estimated
from rowsft.report.tuning_curves import charts
from rowsft.store import Store


def section(store):
    (found,) = report.sections(store.root, "demo")
    return found


def tuning(store, **how):
    """The section and its tuning, by (line's title, rows)."""
    found = section(store)
    return found, {(one.row.method, one.row.settings["budget.rows"]): one for one in found.tuned.values()}


def test_the_report_comes_to_the_rates_that_the_stage_chose(tmp_path):
    chosen = plant(Store(tmp_path), ("rows", "lora"), (4, 64))
    found, tuned = tuning(Store(tmp_path))
    assert {
        ("rows" if name == "row_sft" else name, rows): one.way.chosen for (name, rows), one in tuned.items()
    } == chosen
    one = tuned["row_sft", 4]
    assert one.tried == "7 tried (5 + 2 refined)" and len(one.runs) == 7
    assert one.curve == [(rate, validation("rows", 4, rate)) for rate, _ in one.curve]
    assert one.validation == max(value for _, value in one.curve)
    # Bars from the lowest to the highest rate, the chosen one marked.
    bars = re.sub(r"[\[\]]", "", one.spark)
    assert len(bars) == 7 and one.spark.index("[") == [rate for rate, _ in one.curve].index(one.way.chosen)
    assert [line.title for line in found.lines] == [
        "row-SFT (rows=4)",
        "row-SFT (rows=64)",
        "LoRA (rows=4)",
        "LoRA (rows=64)",
    ]


def test_a_rate_tuned_over_a_whole_grid_meets_the_contract(tmp_path):
    plant(Store(tmp_path), ("rows", "lora"), (4, 64))
    judged = status(section(Store(tmp_path)), "learning_rate")
    assert judged.status == "met"
    assert judged.detail == (
        "grid 0.0001, 0.0003, 0.001, 0.003, 0.01, refined by half a step, at seed 0, which no run here has"
    )


@pytest.mark.parametrize(
    ("tune", "seeds", "said"),
    [
        ({"lr": [3e-4, 1e-3, 3e-3, 1e-2]}, (1, 2, 3), "4 rates, at least 5 are needed"),
        ({"lr": [1e-5, 1e-4, 1e-3, 1e-2, 1e-1]}, (1, 2, 3), "neighbouring rates differ by a factor of 10"),
        ({"lr": [1e-6, 3e-6, 1e-5, 3e-5, 1e-4], "extensions": 0}, (1, 2, 3), "still at the edge of what was tried"),
        ({}, (0, 1, 2), "tuned on a seed that is judged"),
    ],
)
def test_what_falls_short_of_a_tuned_rate_is_not_met(tmp_path, tune, seeds, said):
    plant(Store(tmp_path), ("rows", "lora"), (4,), seeds, TUNE | tune)
    judged = status(section(Store(tmp_path)), "learning_rate")
    assert judged.status == "not met" and said in judged.detail


def test_halving_is_marked(tmp_path):
    plant(Store(tmp_path), ("rows", "lora"), (4,), tune=TUNE | {"halving": {"factor": 3, "steps": [10, 30]}})
    found, tuned = tuning(Store(tmp_path))
    assert status(found, "learning_rate").status == "met"
    assert "chosen by successive halving" in status(found, "learning_rate").detail
    one = tuned["lora", 4]
    assert one.tried.endswith("chosen by successive halving") and [len(rates) for rates in one.way.survivors] == [2, 1]
    # Five of 10 steps, two of 30, one of 100, two half steps.
    assert len(one.runs) == 10 and len(one.curve) == 3


ALPHAS = TUNE | {"alpha": [8, 16, 32, 64]}


def test_the_alphas_of_a_grid_are_told_with_their_curves_and_costs(tmp_path):
    store = Store(tmp_path)
    chosen = plant(store, ("rows", "lora"), (4, 16), tune=ALPHAS)
    assert {alpha for rate, alpha in (chosen["lora", 4], chosen["lora", 16])} == {8, 32}
    found, tuned = tuning(store)
    one, other = tuned["lora", 4], tuned["row_sft", 4]
    assert ((one.way.chosen, one.alpha), other.way.chosen) == (chosen["lora", 4], chosen["rows", 4])
    assert one.alphas == "8 of 8, 16, 32, 64" and other.alphas == "-"
    assert one.tried == "28 tried (5 at each of 4 alphas + 8 refined)" and len(one.runs) == 28 and len(other.runs) == 7
    assert list(one.curves) == [8, 16, 32, 64] and one.curve == one.curves[8]
    assert all(
        value == validation("lora", 4, rate, alpha) for alpha, curve in one.curves.items() for rate, value in curve
    )
    assert one.validation == max(value for curve in one.curves.values() for _, value in curve)
    assert re.fullmatch(r"8: .*\[.\].*, 16: [^\[]{7}, 32: [^\[]{7}, 64: [^\[]{7}", one.spark)
    assert [line.title for line in found.lines][2:] == ["LoRA (rows=4, alpha=8)", "LoRA (rows=16, alpha=32)"]
    # What was tuned makes no line of its own over the budgets.
    assert [one.title for one in found.budgets.series] == ["row-SFT", "LoRA"]
    (sheet,) = [sheet for sheet in blocks(found) if sheet.title.startswith("How the learning rates and alphas")]
    at = [column.title for column in sheet.columns].index("alpha")
    assert [row[at] for row in sheet.rows] == ["-", "-", "8 of 8, 16, 32, 64", "32 of 8, 16, 32, 64"]
    assert any(note.startswith("Tuning: 70 runs on validation") for note in notes(found))
    # A line for each alpha at each budget.
    (_, alone), (_, lines) = charts(found)
    assert lines.count(b"alpha=") >= 8 and b"alpha=" not in alone


def test_a_larger_grid_than_others_is_told_by_the_contract(tmp_path):
    plant(Store(tmp_path), ("rows", "lora", "dora"), (4,), tune=ALPHAS)
    judged = status(section(Store(tmp_path)), "learning_rate")
    assert judged.status == "not met" and judged.detail == (
        "some were tuned over a larger grid than others: "
        "LoRA, DoRA by rate and alpha (8, 16, 32, 64); row-SFT by rate alone"
    )


@pytest.mark.parametrize("alphas", [[8, 16, 32, 64], [8]])
def test_methods_that_have_the_same_alphas_meet_the_contract(tmp_path, alphas):
    lines = ("lora", "dora") if len(alphas) > 1 else ("rows", "lora")
    plant(Store(tmp_path), lines, (4,), tune=TUNE | {"alpha": alphas})
    judged = status(section(Store(tmp_path)), "learning_rate")
    assert judged.status == "met"
    if len(alphas) > 1:
        assert "0.01, at alpha 8, 16, 32, 64, refined by half a step" in judged.detail


def test_an_alpha_that_the_grid_did_not_choose_is_named(tmp_path):
    store = Store(tmp_path)
    rate, _ = plant(store, ("lora",), (4,), tune=ALPHAS)["lora", 4]
    trainer = {"learning_rate": rate, "batch_size": 16, "scheduler": "linear", "steps": 100, "evaluate": ["test"]}
    shared = {"task": "sentiment", "budget": {"rows": 4}, "trainer": trainer, "validation": False}
    finish(store, outcomes(50), method=method("lora", 16), seed=1, tune=ALPHAS, **shared)
    judged = status(section(store), "learning_rate")
    assert judged.status == "not met" and (
        f"not the chosen rate and alpha: LoRA (alpha=16) {rate:g} at alpha 16 (chosen: {rate:g} at alpha 8)"
        in judged.detail
    )


def test_a_setting_whose_alphas_all_failed_is_named_once(tmp_path):
    store = Store(tmp_path)
    plant(store, ("rows", "lora"), (4,), tune=ALPHAS)
    for alpha in ALPHAS["alpha"]:
        for rate in LR:
            trainer = {"learning_rate": rate, "batch_size": 16, "scheduler": "linear", "evaluate": ["validation"]}
            own = {"task": "sentiment", "method": method("dora", alpha), "budget": {"rows": 4}}
            with store.open(config(seed=0, experiment="demo.tuning", trainer=trainer | {"steps": 100}, **own)) as run:
                run.begin().finish("failed")
    (note,) = [note for note in notes(section(store)) if "without a row" in note]
    assert note == "Tuned for this table, but without a row in it: DoRA: 20 of 20 runs on validation failed."


def test_a_rate_that_the_grid_did_not_choose_and_a_row_without_one_are_named(tmp_path):
    store = Store(tmp_path)
    plant(store, ("rows", "lora"), (4,))
    trainer = {"learning_rate": 0.05, "batch_size": 16, "scheduler": "linear", "steps": 100, "evaluate": ["test"]}
    shared = {"task": "sentiment", "budget": {"rows": 4}, "trainer": trainer, "validation": False}
    finish(store, outcomes(50), method=method("dora"), seed=1, **shared)
    finish(store, outcomes(50), method=method("lora"), seed=1, tune=TUNE, **shared)
    judged = status(section(store), "learning_rate")
    assert judged.status == "not met"
    assert "not the chosen rate: LoRA (learning_rate=0.05) 0.05 (chosen: 0.001)" in judged.detail
    assert "not tuned by the sweep: DoRA" in judged.detail


def test_a_grid_that_lacks_a_run_is_not_complete(tmp_path):
    store = Store(tmp_path)
    plant(store, ("rows", "lora"), (4,))
    lost = next(run for run in store.runs("demo.tuning") if run.config["method"]["name"] == "lora")
    (lost.folder / "record.json").unlink()
    found, tuned = tuning(store)
    judged = status(found, "learning_rate")
    assert judged.status == "not met" and "tuning is not complete: LoRA" in judged.detail
    # What is known of the grid may be best at another rate than the row's.
    assert tuned["lora", 4].tried.endswith(", not complete") and not tuned["row_sft", 4].tried.endswith("complete")


@pytest.mark.parametrize("halving", [False, {"factor": 3, "steps": [10, 30]}])
def test_a_setting_that_was_tuned_but_has_no_row_is_named(tmp_path, halving):
    """Every rate of DoRA diverges, and the runs of LoRA's grid at 64 rows were stopped."""
    store, tune = Store(tmp_path), TUNE | {"halving": halving}
    plant(store, ("rows", "lora"), (4,), tune=tune)
    assert not any("without a row" in note for note in notes(section(store)))
    length = {"steps": 10} if halving else {"steps": 100}
    for line, rows, state in (("dora", 4, "failed"), ("lora", 64, "interrupted")):
        for rate in LR:
            trainer = {"learning_rate": rate, "batch_size": 16, "scheduler": "linear", "evaluate": ["validation"]}
            own = {"task": "sentiment", "method": method(line), "budget": {"rows": rows}, "trainer": trainer | length}
            with store.open(config(seed=0, experiment="demo.tuning", **own)) as run:
                run.begin().finish(state)
    (note,) = [note for note in notes(section(store)) if "without a row" in note]
    lora = "LoRA (rows=64, steps=10)" if halving else "LoRA (rows=64)"
    assert note == (
        f"Tuned for this table, but without a row in it: {lora}: none of 5 runs on validation has a result; "
        "DoRA: 5 of 5 runs on validation failed."
    )
    # Another model's tuning is no matter of this table.
    plant(store, ("dora",), (4,), tune=tune, model={"name": "other", "source": "elsewhere"})
    (mine,) = [one for one in report.sections(store.root, "demo") if one.table.model != "other"]
    assert note in notes(mine)
    (mine,) = [one for one in report.sections(store.root, "demo") if one.table.model == "other"]
    assert not any("without a row" in note for note in notes(mine))


def test_runs_at_the_chosen_rate_do_not_count_into_its_score_on_validation(tmp_path):
    """The sweep's own runs, evaluated on validation too, have seeds that the other rates were not tried with."""
    store = Store(tmp_path)
    chosen = plant(store, ("lora",), (4,))
    before = next(iter(section(store).tuned.values())).curve
    trainer = {"learning_rate": chosen["lora", 4], "batch_size": 16, "scheduler": "linear", "steps": 100}
    own = {"task": "sentiment", "budget": {"rows": 4}, "trainer": trainer | {"evaluate": ["validation", "test"]}}
    finish(store, outcomes(1), method=method("lora"), seed=4, tune=TUNE, validation=0.01, **own)
    assert next(iter(section(store).tuned.values())).curve == before
    assert status(section(store), "learning_rate").status == "met"


def test_lines_over_budgets_are_the_rows_with_their_means_and_intervals(tmp_path):
    store = Store(tmp_path)
    plant(store)
    built = report.build(store.root, "demo", tmp_path / "out")
    (found,) = built.sections
    titles = [one.title for one in found.budgets.series]
    assert titles == [*(f"row-SFT (channel={channel})" for channel in ("columns", "neurons", "rows")), "LoRA", "DoRA"]
    assert all(len(one.points) == 8 for one in found.budgets.series) and len(found.budgets.sizes) == 8
    with built.curves.open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert {line["quantity"] for line in lines} == {"metric", "train_peak", "step"}
    assert len(lines) == 3 * 5 * 8
    (line,) = [
        line
        for line in lines
        if (line["line"], line["quantity"], line["trainable_parameters"]) == ("LoRA", "metric", str(20_000 * 16 + 28))
    ]
    records = [run for run in store.runs("demo") if run.config["method"]["name"] == "lora"]
    values = [run.result.metrics["test"]["accuracy"] for run in records if run.config["budget"]["rows"] == 16]
    # Student's t at 0.975 with two degrees of freedom is 4.3027.
    half = 4.302653 * np.std(values, ddof=1) / np.sqrt(3)
    assert float(line["value"]) == pytest.approx(np.mean(values)) and line["interval"] == "95 % t interval over seeds"
    assert float(line["high"]) - float(line["value"]) == pytest.approx(half, rel=1e-5)
    (peak,) = {
        line["value"]
        for line in lines
        if line["quantity"] == "train_peak" and line["line"] == "DoRA" and line["trainable_parameters"] == "80028"
    }
    assert float(peak) == pytest.approx(200 + 0.3 * 4 + 40)
    table = by_budget(found)
    assert table.rows[3][0] == "LoRA" and table.rows[3][3] == estimated(found.budgets.series[3].points[2].estimate, 3)
    page = built.page.read_text()
    assert page.count("data:image/svg+xml") == 3 + len(LINES) + 1 and "Tuning: " in page
    assert report.text(built.sections).count("row-SFT (channel=rows)") == 1


def test_a_held_out_loss_has_a_line_of_its_own(tmp_path):
    store = Store(tmp_path)
    plant(store, ("rows", "lora"), (4, 16, 64))
    for number, record in enumerate(store.runs("demo")):
        with store._reopen(record.id) as run:
            run.begin().finish(
                "done",
                primary_metric="accuracy",
                metrics={"test": {"accuracy": 0.5, "loss": 1 + number}},
                parameters={"adapter": record.result.parameters.adapter, "budget_asked": 1},
            )
    (found,) = report.sections(store.root, "demo")
    loss = next(one for one in found.budgets.quantities if one.key == "loss")
    assert loss.unit == "nats per example" and loss.title == "test loss"
    point = found.budgets.series[0].points[0]
    own = [run.result.metrics["test"]["loss"] for run in store.runs("demo") if run.id in {r.id for r in point.row.done}]
    assert loss.read(point.row).value == pytest.approx(np.mean(own)) and loss.read(point.row).seeds == 3


def test_a_table_of_one_budget_has_no_lines(tmp_path):
    plant(Store(tmp_path), ("rows", "lora"), (4,))
    assert section(Store(tmp_path)).budgets is None
    assert report.build(tmp_path, "demo", tmp_path / "out").curves is None


@pytest.mark.parametrize(
    "damage",
    [
        {"lr": [1e-3]},
        {"lr": [0, 1]},
        {"lr": ["a", "b"]},
        {"lr": 5},
        {"extensions": "x"},
        {"seeds": None},
        {"halving": {"factor": 1}},
        {"alpha": [8, 8]},
        {"alpha": 5},
    ],
)
def test_notes_that_are_no_grid_count_as_absent(tmp_path, damage):
    store = Store(tmp_path)
    trainer = {"learning_rate": 1e-3, "batch_size": 16, "scheduler": "linear", "steps": 100}
    shared = {"task": "sentiment", "budget": {"rows": 4}, "trainer": trainer}
    finish(store, outcomes(50), method=method("lora", 8), tune=TUNE | damage, **shared)
    found = section(store)
    assert not found.tuned and status(found, "learning_rate").status == "not recorded"
