"""What a dashboard shows of an attempt is what its record and files hold."""

import pytest
from tracked_run import MIB, PARTS, record_run

from rowsft.measure import ledger
from rowsft.record import Attempt
from rowsft.tracking import content, names


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    return record_run(tmp_path_factory.mktemp("store") / "runs")


def test_curves_are_the_recorded_points_without_what_was_not_measured(record):
    assert content.curve(record.result, record.folder) == [
        (1, {"train/loss": 0.9, "train/grad_norm": 1.5, "train/learning_rate": 1e-3}),
        (2, {"train/loss": 0.7, "train/learning_rate": 1e-3}),
        (3, {"train/loss": 0.4, "train/grad_norm": 1.0, "train/learning_rate": 1e-3}),
    ]


def test_a_column_of_the_validation_split_is_a_curve_of_its_own():
    assert content.point({"step": 4, "loss": 1, "validation_loss": 2.5}) == (
        4,
        {names.TRAIN_LOSS: 1.0, names.VALIDATION_LOSS: 2.5},
    )


def test_memory_is_one_series_a_part_in_mib(record):
    first, second = content.memory_step(record.result, record.folder)
    assert first == {names.MEMORY_EVENT: 0} | {names.memory_step(part): size / MIB for part, size in PARTS.items()}
    assert second[names.MEMORY_EVENT] == 7 and second[names.memory_step("base_weights")] == 16


def test_final_numbers_have_names_that_are_alike_for_all_tasks(record):
    numbers = content.final_numbers(record.result)
    assert (numbers[names.PRIMARY], numbers[names.HELD_OUT_LOSS], numbers[names.TRAIN_PEAK]) == (0.75, 0.6, 16.0)
    assert numbers["metrics/validation/accuracy"] == 0.8
    assert numbers[names.PARAMETERS] == 231 and numbers[names.TRAIN_SECONDS] == 12.5
    # At the peak of a training step: scoring is another phase, however much it holds.
    assert numbers[names.memory_at_peak("optimizer_state")] == 2


def test_the_split_is_the_last_one_where_test_was_not_evaluated(record):
    attempt = record.result.changed(metrics={"validation": {"accuracy": 0.8}})
    assert content.final_numbers(attempt)[names.PRIMARY] == 0.8
    assert names.PRIMARY not in content.final_numbers(record.result.changed(metrics={}))


def test_nothing_recorded_is_nothing_shown(record):
    empty = Attempt(attempt=1, state="failed")
    assert content.curve(empty, record.folder) == content.memory_step(empty, record.folder) == []
    assert content.ledger_rows(empty) == content.selection_rows(empty, record.folder) == []
    assert content.final_numbers(empty) == {}


def test_rows_chosen_are_counted_by_block_and_module(record):
    assert content.selection_rows(record.result, record.folder) == [
        [0, "attention.self.query", 3, 0, "encoder.layer.0.attention.self.query"],
        [1, "attention.self.query", 1, 0, "encoder.layer.1.attention.self.query"],
        [1, "output.dense", 0, 2, "encoder.layer.1.output.dense"],
    ]


def test_the_ledger_has_a_row_a_phase_and_part(record):
    rows = content.ledger_rows(record.result)
    assert ["backward", "saved_activations", 3.0] in rows and ["backward", "unattributed", 0.5] in rows
    assert len(rows) == 2 * len(PARTS) + 1


def test_parts_are_those_that_the_ledger_measures():
    assert set(names.PARTS) == set(ledger.PARTS)
