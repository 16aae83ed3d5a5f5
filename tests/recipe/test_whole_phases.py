"""Phases and parts mean the same in a plan and in the record of the run that it plans."""

import pytest
from planned_runs import both

from rowsft.tracking.tracker import NullTracker

pytestmark = pytest.mark.whole

STEP = ("forward", "backward", "optimizer_step")
SETTINGS = [
    ("bert", ["method=full"]),
    ("llama", ["method=full"]),
    ("llama", ["method=full", "trainer.gradient_accumulation=3"]),
    ("llama", ["method=lora", "trainer.gradient_checkpointing=true"]),
    ("llama", ["method=row_sft", "method.importance=l2", "trainer=bf16"]),
]


@pytest.mark.parametrize(
    ("family", "overrides"), SETTINGS, ids=lambda given: given if isinstance(given, str) else " ".join(given)
)
def test_a_phase_holds_the_same_parts_in_both(workshop, long_data, family, overrides):
    planned, memory = both(workshop, long_data, family, *overrides)
    assert list(planned.step.peaks) == list(STEP)
    for phase in STEP:
        entered = memory["ledger"][phase]
        assert entered["measured_peak_bytes"] is not None, phase
        assert entered["unattributed_bytes"] == entered["measured_peak_bytes"] - entered["peak_bytes"]
        margin = 1e-3 * entered["peak_bytes"]
        assert entered["peak_bytes"] == pytest.approx(entered["measured_peak_bytes"], abs=margin), phase
        for part, size in planned.step.peaks[phase].parts.items():
            assert size == pytest.approx(entered["parts"][part], abs=margin), (phase, part)
    gradients = {phase: memory["ledger"][phase]["parts"]["gradients"] for phase in STEP}
    trained = 4 * planned.trainable.total()
    # Those of the micro-batches before stay while the next ones go forward.
    assert gradients["forward"] == (trained if "trainer.gradient_accumulation=3" in overrides else 0)
    assert gradients["optimizer_step"] == trained
    load = memory["ledger"]["load"]
    assert load["measured_peak_bytes"] >= load["parts"]["base_weights"] > 0


def test_the_tracker_is_told_the_numbers_of_the_record(workshop, long_data, monkeypatch):
    summary = {}
    monkeypatch.setattr(NullTracker, "summary", lambda self, values: summary.update(values))
    _, memory = both(workshop, long_data, "bert", "method=lora")
    assert summary["memory/train/peak_allocated_bytes"] == memory["train"]["peak_allocated_bytes"]
    assert {"metrics/test/accuracy", "seconds/train", "step_seconds/median", "parameters/adapter"} <= set(summary)
