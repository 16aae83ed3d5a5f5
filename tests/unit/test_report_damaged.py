"""Damaged files of one run, and odd words in its notes, cost the report that run's part and nothing else."""

import numpy as np
import pytest
from report_factory import finish, outcomes, status
from safetensors.numpy import save_file

from rowsft import report
from rowsft.record import plain
from rowsft.store import Store
from rowsft.store.chosen import WEIGHTS


@pytest.mark.parametrize("step", ["0", "-3", "9" * 400])
def test_a_curve_of_steps_that_are_none_counts_as_absent(tmp_path, caplog, step):
    store = Store(tmp_path / "runs")
    run = finish(store, outcomes(60), method="lora", task="sentiment")
    (store.root / run / "attempt-1" / "curve.csv").write_text(f"step,loss\n{step},1.0\n")
    files = report.build(store.root, "demo", tmp_path / "out")
    assert "svg+xml" not in files.page.read_text() and files.sections[0].lines[0].value == 0.6
    assert "curve.csv is damaged" in caplog.text


@pytest.mark.parametrize(
    "ids", [np.zeros((2, 2), np.int64), np.zeros(0, np.int64), np.array(3)], ids=["nested", "empty", "single"]
)
def test_an_adapter_without_lists_of_ids_has_no_selection(tmp_path, ids):
    store = Store(tmp_path)
    for importance in ("l1", "l2"):
        method = {"_target_": "rowsft.methods.row_sft.RowSFT", "name": "row_sft", "importance": importance}
        finish(store, outcomes(60), method=method, task="sentiment")
    for record in store.runs():
        with store._reopen(record.id) as run:
            attempt = run.begin()
            fields = plain(record.result)
            attempt.update(**{key: value for key, value in fields.items() if key not in ("attempt", "state")})
            attempt.write_folder("adapter", lambda path: save_file({"a.row_sft_ids": ids}, path / WEIGHTS))
            attempt.finish("done")
    (section,) = report.sections(tmp_path, "demo")
    assert section.overlaps == [] and len(section.lines) == 2


@pytest.mark.parametrize("said", [True, 5, ["float32", "throughout"], {"adapters": "float32"}])
def test_what_an_experiment_states_need_not_be_text(tmp_path, said):
    store = Store(tmp_path)
    finish(store, outcomes(60), method="lora", task="sentiment", fairness={"adapter_dtype": said})
    found = status(report.sections(tmp_path, "demo")[0], "adapter_dtype")
    assert found.status == "stated" and str(said) in found.detail
