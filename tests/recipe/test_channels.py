"""Whole runs of row-SFT beyond rows: the settings reach the adapter, and the record adds up."""

import json

import pytest

from rowsft.store import Store


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", ["method.channel=in", "budget.rows=8"]),
        ("bert", ["method.channel=neuron", "method.scope=global", "budget.rows=2", "method.importance=l2"]),
    ],
)
def test_a_channel_end_to_end(workshop, family, settings):
    channel = settings[0].rpartition("=")[2]
    overrides = [*workshop.overrides(family), "method=row_sft", f"experiment_name=channel_{channel}", *settings]
    done = workshop.rowsft("run", *overrides)
    assert done.returncode == 0, done.stderr
    (record,) = Store(workshop.folder / "runs").runs(f"channel_{channel}")
    knobs, parameters = record.result["knobs"], record.result["parameters"]
    assert parameters["adapter"] == parameters["budget_achieved"]
    if channel == "in":
        assert parameters["budget_asked"] == parameters["budget_achieved"]
        assert set(knobs["columns_pattern"].values()) == {8}
        assert knobs["rows_pattern"] == {}
    else:
        assert knobs["limit"] == {"rows": 2 * 4}
    saved = json.loads((record.file("adapter") / "adapter_config.json").read_text())
    assert (saved["channel"], saved["columns_pattern"]) == (channel, knobs["columns_pattern"])
