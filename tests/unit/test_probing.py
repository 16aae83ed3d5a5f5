"""The probes measure what the run's largest batch takes, whichever that is."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from tiny import PAD, tiny_bert

from rowsft.measure import MemoryLog, phase_memory
from rowsft.methods.row_sft import RowSFT
from rowsft.runner import memory_probe
from rowsft.runner.extra_step import largest_micro_batch
from rowsft.runner.ranks import ALONE
from rowsft.tasks.classification import ClassificationTask, pad_right
from rowsft.tasks.evaluating import run_batches

# Enough of full length to fill a batch; the next one has padding.
LENGTHS = [24] * 5 + [7] * 5
SIZE = 4


def job_on(model, autocast=None, second=False):
    examples = [{"input_ids": [10] * length, "labels": 1} for length in LENGTHS]
    settings = SimpleNamespace(
        evaluate=["validation", "test"],
        eval_batch_size=SIZE,
        autocast=autocast,
        batch_size=SIZE,
        gradient_checkpointing=False,
    )
    return SimpleNamespace(
        settings=settings,
        # Of several splits the largest batch may be in any, and not all fill one.
        splits={"validation": examples[:2], "test": examples}
        if second
        else {"validation": examples, "test": examples[4:]},
        model=model,
        trainer=None,
        ranks=ALONE,
        device=torch.device("cpu"),
        memory=MemoryLog("cpu"),
    )


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("autocast", [None, "bf16"])
def test_the_probed_evaluation_has_the_peak_of_the_whole(autocast, second):
    model = tiny_bert(num_labels=2)
    job = job_on(model, autocast, second)

    def evaluate(examples):
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            run_batches(
                model,
                examples,
                lambda rows: pad_right(rows, PAD, torch.long),
                SIZE,
                None,
                ClassificationTask.read_batch,
            )

    memory_probe.evaluation(job, evaluate)
    whole = phase_memory(lambda: [evaluate(examples) for examples in job.splits.values()], "cpu", model)
    assert job.memory["evaluate"].peak_allocated_bytes == whole.peak_allocated_bytes


def test_of_equal_batches_the_one_with_padding_is_probed():
    job = job_on(tiny_bert())
    examples = job.splits["validation"]
    arguments = SimpleNamespace(per_device_train_batch_size=SIZE, process_index=0, world_size=1)
    trainer = SimpleNamespace(args=arguments, train_dataset=examples)
    assert largest_micro_batch(trainer) == examples[SIZE : 2 * SIZE]

    batches = [pad_right(examples[first : first + SIZE], PAD, torch.long) for first in range(0, len(examples), SIZE)]
    seen = []

    class Watched(RowSFT):
        def select(self, model, resolved, calibration):
            seen.extend(calibration)
            return resolved

    job.method = Watched(rows=1)
    memory_probe.selection(job, None, batches)
    assert all(batch["input_ids"].equal(batches[1]["input_ids"]) for batch in seen) and seen
