"""A plan held against the record of the run that it plans, by the same overrides."""

import json
import shutil

import pytest
from planned_runs import both, without_weights
from tiny import tiny_llama

from rowsft.config.compose import compose
from rowsft.config.run_spec import run_spec
from rowsft.config.settings import trainer_settings
from rowsft.plan import plan

pytestmark = pytest.mark.whole


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", ["method=row_sft", "method.importance=l2"]),
        ("llama", ["method=lora", "trainer.gradient_accumulation=3", "trainer.batch_size=1"]),
        ("llama", ["method=dora", "trainer.gradient_checkpointing=true", "model.dtype=bfloat16"]),
        ("llama", ["method=row_sft", "method.importance=l2", "method.dropout=0.1"]),
        ("llama", ["method=row_sft", "method.importance=l2", "trainer=bf16"]),
        ("llama", ["method=lora", "trainer=bf16", "trainer.gradient_checkpointing=true"]),
        ("llama", ["method=row_sft", "method.importance=l2", "trainer=bf16", "model.dtype=bfloat16"]),
        ("bert", ["method=full"]),
        ("bert", ["method=head"]),
    ],
    ids=lambda given: given if isinstance(given, str) else " ".join(given),
)
def test_the_planned_peak_is_that_of_the_run(workshop, long_data, family, overrides):
    planned, memory = both(workshop, long_data, family, *overrides)
    assert planned.peak_bytes == pytest.approx(memory["train"]["peak_allocated_bytes"], rel=1e-3)


EVALUATED = ["trainer.eval_batch_size=8", "trainer.evaluate=[validation]", "task.data.validation=0.5"]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", ["method=row_sft", "method.importance=l2"]),
        ("llama", ["method=row_sft", "method.importance=l2", "model.dtype=bfloat16"]),
        ("llama", ["method=lora"]),
        ("llama", ["method=lora", "trainer=bf16"]),
        # Nothing has told this one to keep no keys and values.
        ("llama", ["method=none", "trainer.eval_batch_size=1"]),
        ("bert", ["method=row_sft", "method.importance=l2"]),
        ("bert", ["method=row_sft", "method.importance=l2", "trainer=bf16"]),
        ("bert", ["method=row_sft", "method.importance=l2", "model.dtype=bfloat16"]),
        ("bert", ["method=lora"]),
        ("bert", ["method=full", "trainer=bf16"]),
    ],
    ids=lambda given: given if isinstance(given, str) else " ".join(given),
)
def test_the_planned_evaluation_is_that_of_the_run(workshop, long_data, family, overrides):
    """Of twenty rows, most of them of full length: a batch of those has no padding, the last one with such has."""
    planned, memory = both(workshop, long_data, family, *EVALUATED, *overrides)
    assert planned.evaluation_bytes == pytest.approx(memory["evaluate"]["peak_allocated_bytes"], rel=1e-3)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("importance", "trainer"), [("taylor", "default"), ("taylor2", "default"), ("taylor", "checkpointing")]
)
def test_the_planned_peaks_of_scoring_and_evaluating_are_those_of_the_run(workshop, long_data, importance, trainer):
    overrides = ["method=row_sft", f"method.importance={importance}", f"trainer={trainer}"]
    overrides += ["trainer.eval_batch_size=1", "trainer.evaluate=[train]"]
    planned, memory = both(workshop, long_data, "llama", *overrides)
    assert planned.selection_bytes == pytest.approx(memory["select"]["peak_allocated_bytes"], rel=1e-4)
    assert planned.evaluation_bytes == pytest.approx(memory["evaluate"]["peak_allocated_bytes"], rel=1e-4)
    for phase in ("select", "evaluate"):
        entered = memory["ledger"][phase]
        assert entered["peak_bytes"] == pytest.approx(entered["measured_peak_bytes"], rel=1e-4)


@pytest.fixture(scope="module")
def middling(workshop):
    """A model of so many layers that the scratch of one kernel is little."""
    folder = workshop.folder / "models" / "middling"
    shutil.copytree(workshop.folder / "models" / "llama", folder)
    tiny_llama(hidden_size=256, intermediate_size=768, num_hidden_layers=16).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("instruction_set", ["ALL", "AVX512_CORE"])
def test_a_run_with_larger_instruction_sets_is_planned_within_a_percent(workshop, long_data, middling, instruction_set):
    """The tests keep to AVX2 (conftest.py); ALL is whatever this processor has, as a user's run takes it."""
    given = [*workshop.overrides("llama"), f"task.data.path={long_data}/pairs.jsonl", "trainer=bf16", "method=lora"]
    given += [f"model.source={middling}", "trainer.steps=2", *EVALUATED]
    config = compose([*given, f"model.source={without_weights(workshop, middling.name)}"])
    planned = plan(config, trainer_settings(config))
    done = workshop.rowsft("run", "--rerun", *given, ONEDNN_MAX_CPU_ISA=instruction_set, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    record = json.loads((run_spec(compose(given)).folder / "record.json").read_text())
    memory = record["attempts"][-1]["memory"]
    assert planned.peak_bytes == pytest.approx(memory["train"]["peak_allocated_bytes"], rel=0.01)
    assert planned.evaluation_bytes == pytest.approx(memory["evaluate"]["peak_allocated_bytes"], rel=0.01)
