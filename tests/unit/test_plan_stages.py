"""A plan's parts and its stages: training, scoring, evaluating."""

import pytest
from planning import SMALL, planned
from transformers import DebertaV2Config

from rowsft.plan import scoring


def test_parts_and_parameters_add_up():
    result = planned(*SMALL, "method=row_sft", "method.importance=l2", "budget.rows=4")
    # 4 rows with their biases of query, key, value and both outputs, and of the wide dense, in 6 layers.
    assert result.trainable.total() - result.head_parameters == 6 * 4 * (5 * (384 + 1) + (1536 + 1))
    peak = result.step.peak
    assert sum(peak.parts.values()) == result.peak_bytes
    assert peak.parts["trainable_weights"] == 4 * result.trainable.total()
    assert peak.parts["optimizer_state"] >= 2 * peak.parts["trainable_weights"]


def test_gpu_tensors_come_in_blocks():
    result = planned(*SMALL, "trainer.device=auto", "method=lora", "budget.rows=4")
    assert all(size % 512 == 0 for size in result.step.peak.parts.values())


def test_a_global_choice_is_bounded():
    large = ["trainer.batch_size=16", "task.max_length=64", "budget.rows=4"]
    result = planned(*SMALL, *large, "method=row_sft", "method.importance=l2", "method.scope=global")
    assert set(result.bounds) == {"even", "last layers", "costliest layers"}
    assert result.bounds["last layers"] < result.bounds["even"]
    assert result.peak_bytes == max(result.bounds.values())


@pytest.mark.parametrize("importance", ["taylor", "fisher", "wanda", "zo_taylor", "lowest(taylor_row)"])
def test_scoring_is_planned(importance):
    result = planned(*SMALL, "method=row_sft", f"method.importance={importance}", "budget.rows=4")
    assert result.selection_bytes > result.step.peak.parts["base_weights"] / 2


@pytest.mark.parametrize("importance", ["taylor2", "fisher", "taylor"])
def test_scorings_peak_is_that_of_all_passes(monkeypatch, importance):
    """A short batch keeps little, so layers go through one by one, and the widest of a block sets the peak."""
    given = [*SMALL, "method=row_sft", f"method.importance={importance}", "budget.rows=4"]
    told = planned(*given).selection_bytes
    monkeypatch.setattr(scoring, "_LEAST", 10**6)
    # But for the scores of the layers that are through: a number a row.
    assert told == pytest.approx(planned(*given).selection_bytes, rel=1e-3)


def test_all_calibration_batches_lie_on_a_gpu():
    given = [*SMALL, "trainer.device=auto", "method=row_sft", "budget.rows=4"]
    one, eleven = (planned(*given, f"trainer.calibration_batches={count}").selection_bytes for count in (1, 11))
    # Of two examples of 8 tokens: ids, mask, types and labels, a block of 512 bytes each.
    assert eleven - one == 10 * 4 * 512


def test_evaluation_is_planned_under_autocast():
    plain, cast = (planned(*SMALL, f"trainer={name}", "method=none") for name in ("default", "bf16"))
    assert 0 < cast.evaluation_bytes != plain.evaluation_bytes


def test_a_classifier_that_asks_what_its_labels_are_is_told(tmp_path):
    """DeBERTa's loss would look for labels that count; a run names the problem instead."""
    sizes = {"vocab_size": 99, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    DebertaV2Config(**sizes, num_attention_heads=2, pooler_hidden_size=16).save_pretrained(tmp_path)
    given = ["model=deberta_v3_base", f"model.source={tmp_path}", "model.attn_implementation=eager", "budget.rows=2"]
    assert planned(*SMALL, *given, "method=row_sft").selection_bytes > 0
