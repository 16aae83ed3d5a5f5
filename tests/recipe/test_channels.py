"""Whole runs of row-SFT beyond rows: the settings reach the adapter, and the record adds up."""

import csv
import json

import pytest
from safetensors.torch import load_file

from rowsft.record import WarmHead
from rowsft.store import Store


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", ["method.channel=columns", "budget.rows=8"]),
        ("bert", ["method.channel=neurons", "method.scope=global", "budget.rows=2", "method.importance=l2"]),
    ],
)
def test_a_channel_end_to_end(workshop, family, settings):
    channel = settings[0].rpartition("=")[2]
    overrides = [*workshop.overrides(family), "method=row_sft", f"experiment_name=channel_{channel}", *settings]
    done = workshop.rowsft("run", *overrides)
    assert done.returncode == 0, done.stderr
    (record,) = Store(workshop.folder / "runs").runs(f"channel_{channel}")
    resolved, parameters = record.result.resolved, record.result.parameters
    assert parameters.adapter == parameters.budget_achieved
    if channel == "columns":
        assert parameters.budget_asked == parameters.budget_achieved
        assert set(resolved["columns_pattern"].values()) == {8}
        assert resolved["rows_pattern"] == {}
    else:
        assert resolved["limit"] == {"rows": 2 * 4}
    saved = json.loads((record.file("adapter") / "adapter_config.json").read_text())
    assert (saved["channel"], saved["columns_pattern"]) == (channel, resolved["columns_pattern"])


def test_a_warm_head_changes_what_is_chosen_and_not_where_training_starts(workshop):
    overrides = [*workshop.overrides("bert"), "method=row_sft", "experiment_name=warm", "budget.rows=2"]
    for steps in (0, 8):
        done = workshop.rowsft("run", *overrides, f"trainer.warm_head={steps}", "trainer.learning_rate=0.05")
        assert done.returncode == 0, done.stderr
    records = Store(workshop.folder / "runs").runs("warm")
    cold, warm = sorted(records, key=lambda record: record.config["trainer"]["warm_head"])
    assert cold.result.warm_head == WarmHead()
    assert warm.result.warm_head.steps == 8
    first = [next(csv.DictReader(record.file("curve").open()))["loss"] for record in (cold, warm)]
    assert first[0] == first[1]
    chosen = [load_file(record.file("adapter") / "adapter_model.safetensors") for record in (cold, warm)]
    ids = [name for name in chosen[0] if "row_sft_ids" in name]
    assert ids
    assert any(chosen[0][name].tolist() != chosen[1][name].tolist() for name in ids)
