"""What the selections of two metrics have in common, from adapters on disk."""

import numpy as np
import pytest
from report_factory import classification, config, finish
from safetensors.numpy import save_file

from rowsft import report
from rowsft.record import plain
from rowsft.report import overlap
from rowsft.report.markdown import markdown
from rowsft.store import Store

# Per metric and seed the rows of two layers.
CHOSEN = {
    ("taylor", 1): ([1, 2, 3, 4], [7]),
    ("taylor", 2): ([1, 2, 3, 9], [7]),
    ("l2", 1): ([3, 4, 5, 6], [8]),
    ("l2", 2): ([1, 2, 5, 6], [7]),
}


@pytest.fixture
def sections(tmp_path):
    store = Store(tmp_path / "runs")
    for importance, seed in CHOSEN:
        method = {"_target_": "rowsft.methods.row_sft.RowSFT", "name": "row_sft", "importance": importance}
        # A setting that l2 does not use, and so does not differ in.
        trainer = config()["trainer"] | {"calibration_batches": 10}
        finish(store, classification("row_sft", seed), method=method, seed=seed, task="sentiment", trainer=trainer)
    for record in store.runs():
        first, second = CHOSEN[record.config["method"]["importance"], record.config["seed"]]
        tensors = {
            "base_model.model.a.row_sft_ids": np.array(first),
            "base_model.model.a.row_sft_delta": np.zeros((len(first), 2), np.float32),
            "base_model.model.b.row_sft_column_ids": np.array(second),
        }
        with store._reopen(record.id) as run:
            attempt = run.begin()
            result = plain(record.result.changed(files={}))
            attempt.update(**{key: value for key, value in result.items() if key not in ("attempt", "state")})
            attempt.write_folder("adapter", lambda folder, held=tensors: save_adapter(folder, held))
            attempt.finish("done")
    return report.sections(tmp_path / "runs", "demo")


def save_adapter(folder, tensors):
    save_file(tensors, folder / "adapter_model.safetensors")


def test_shares_are_counted_over_all_layers_and_averaged_over_seeds(sections):
    (section,) = sections
    shares = {frozenset((pair.first, pair.second)): pair for pair in section.overlaps}
    # Seed 1: rows 3 and 4 of five; seed 2: rows 1 and 2, and column 7.
    both = shares[frozenset(("taylor", "l2"))]
    assert both.share == pytest.approx((2 / 5 + 3 / 5) / 2) and both.pairs == 2
    assert shares[frozenset(("taylor",))].share == pytest.approx(4 / 5)
    assert shares[frozenset(("l2",))].share == pytest.approx(2 / 5)
    text = markdown(section)
    assert "Overlap of the selections" in text and "0.50" in text and "0.80" in text


def test_the_page_shows_the_overlap(sections, tmp_path):
    files = report.build(tmp_path / "runs", "demo", tmp_path / "report")
    page = files.page.read_text()
    assert "Overlap of the selections" in page and "<td>0.40</td>" in page


def test_a_selection_of_another_size_is_held_against_the_smaller_one():
    one = {("a", "ids"): {1, 2, 3, 4}}
    assert overlap.share(one, {("a", "ids"): {1, 9}}) == 0.5
    assert overlap.share(one, {("b", "ids"): {1, 2}}) == 0.0


def test_a_run_without_an_adapter_has_no_selection(sections, tmp_path):
    store = Store(tmp_path / "none")
    finish(store, classification("lora", 1), task="sentiment")
    assert overlap.selected(store.runs()[0]) is None
