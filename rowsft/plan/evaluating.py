"""The memory of evaluating: the tasks' own pass over the model on tensors without data."""

from typing import TYPE_CHECKING

from torch import nn

from rowsft.measure.ledger import CUDA_BLOCK_BYTES, Ledger
from rowsft.plan.autocast import autocast, fake_device
from rowsft.plan.without_data import without_data

if TYPE_CHECKING:
    from rowsft.plan.planned_run import PlannedRun


def evaluation_peak(run: "PlannedRun", model: nn.Module) -> int:
    """Bytes of tensors at the largest moment of evaluating with `model`, attached and without an optimizer.

    Every answer has a prompt of its own. Where a task's answers share prompts, the keys and values of all tokens are
    kept beside the answers' logits: the larger of both ways counts.
    """
    count = run.settings.eval_batch_size
    batch = run.batch(model, evaluated=True)
    # Autocast keeps the trained weights that it has converted: the second batch has all of them from its start.
    times = 2 if run.settings.autocast else 1
    with (
        fake_device(model, run.gpu),
        without_data(run.gpu, padded=count > 1 and not run.lengths.alike[1], results=True),
        # Around all batches, as a run has it: weights that are trained are converted once.
        autocast(run.settings.autocast),
    ):
        ledger = Ledger(CUDA_BLOCK_BYTES if run.gpu else 1)
        ledger.phase = "evaluate"
        with ledger:
            ledger.hold_model(model)
            ledger.hold("temporary", batch.values())
            ledger.begin()
            run.task.dry_evaluation(model, batch, times)
    return max(moment.total for moment in ledger.peaks().values())
